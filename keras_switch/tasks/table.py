"""The table of tasks."""

import functools
import os
from collections.abc import Sequence

from keras_switch.tasks import packages, wheels
from keras_switch.tasks.from_file import SUFFIXES, from_file
from keras_switch.tasks.splits import SIDES, Splits
from keras_switch.tasks.task import CLASSIFICATION, Task

_SUMMARY = ("rouge1", "rouge2", "rougeL")
_TRANSLATION = ("bleu", "chrf")


def _classify(name, load, question):
    template = f"{question}: {{input}}"
    return Task(name, load, template, CLASSIFICATION, classification=True)


def _translate(name, code, language):
    return Task(
        name,
        packages.translation_loader(code),
        f"translate English to {language}: {{input}}",
        _TRANSLATION,
    )


_BUILT_IN = (
    Task(
        "debian_summary", packages.load_summary, "summarize: {input}", _SUMMARY
    ),
    _classify("debian_section", packages.load_section, "section"),
    Task("headline", wheels.load_headline, "headline: {input}", _SUMMARY),
    _classify("newsgroups", wheels.load_newsgroups, "newsgroup"),
    *(
        _classify(
            f"sentiment_{domain}",
            wheels.sentiment_loader(domain),
            "sentiment",
        )
        for domain in wheels.SENTIMENT_DOMAINS
    ),
    _translate("debian_en_fr", "fr", "French"),
    _translate("debian_en_de", "de", "German"),
)
_TASKS: dict[str, Task] = {task.name: task for task in _BUILT_IN}
# Names of several tasks.
_GROUPS = {
    "sentiment": tuple(f"sentiment_{d}" for d in wheels.SENTIMENT_DOMAINS)
}


def names() -> list[str]:
    """Names of the tasks in the table, in its order."""
    return list(_TASKS)


def register(task: Task) -> None:
    """Puts a task into the table.

    Args:
        task: The task.

    Raises:
        ValueError: if its name is taken, or would be read as a file's.
    """
    taken = task.name in _TASKS or task.name in _GROUPS
    if taken or _is_file(task.name) or not task.name:
        raise ValueError(
            "a task must have a name of its own, which does not end with "
            f"{' or '.join(SUFFIXES)}; received {task.name!r}."
        )
    _TASKS[task.name] = task


def find(wanted: Sequence[str]) -> list[Task]:
    """Tasks by their names, or from files.

    Args:
        wanted: names in the table, `"sentiment"` for its four domains, or
            paths of `.csv` and `.jsonl` files, see `from_file`.

    Returns:
        The tasks.

    Raises:
        ValueError: if one is unknown or comes twice, none is wanted, or a
            file is not as it must be.
        FileNotFoundError: if there is no such file.
    """
    found = []
    for name in wanted:
        if name in _TASKS:
            found.append(_TASKS[name])
        elif name in _GROUPS:
            found += [_TASKS[member] for member in _GROUPS[name]]
        elif _is_file(name):
            found.append(from_file(name))
        else:
            raise ValueError(
                f"a task must be one of {', '.join([*_TASKS, *_GROUPS])}, or "
                f"a {' or '.join(SUFFIXES)} file; received {name!r}."
            )
    its_names = [task.name for task in found]
    if not its_names or len(set(its_names)) < len(its_names):
        raise ValueError(
            "tasks must be at least one, and each of its own name; received "
            f"{', '.join(its_names) or 'none'}."
        )
    return found


def _is_file(name):
    return os.fspath(name).lower().endswith(SUFFIXES)


@functools.lru_cache(maxsize=16)
def load(task: Task, cache_dir: str | os.PathLike | None = None) -> Splits:
    """The examples of a task; they are kept in memory.

    Args:
        task: The task.
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        Its sides.

    Raises:
        As the task's loader.
    """
    return task.load(cache_dir)


def describe(task: Task, splits: Splits) -> dict[str, int | str]:
    """What a task's examples are like.

    Args:
        task: The task.
        splits: Its examples.

    Returns:
        A row of a table: `task`; examples of each side; `labels`, how many
        different ones, of a classification; `input_words` and
        `target_words`, medians of the training side; `digest` of all.
    """
    labels = {example.target for side in splits for example in side}
    counts = dict(zip(SIDES, map(len, splits), strict=True))
    return {
        "task": task.name,
        **counts,
        "labels": len(labels) if task.classification else "",
        "input_words": _median_words([e.input for e in splits.train]),
        "target_words": _median_words([e.target for e in splits.train]),
        "digest": splits.digest()[:12],
    }


def _median_words(texts):
    return sorted(len(text.split()) for text in texts)[len(texts) // 2]
