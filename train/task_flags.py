"""What `--task` and its companions say, for `finetune` and `evaluate`."""

import os
from typing import Any, NamedTuple

from absl import flags as absl_flags
from absl import logging

from keras_switch_train import flags

TASK = absl_flags.DEFINE_list(
    "task",
    [],
    "Names of tasks, with commas between them: debian_summary, debian_section, "
    "headline, newsgroups, sentiment (of four domains: sentiment_film, _nyt, "
    "_tweets, _amazon), debian_en_fr, debian_en_de. Or .csv or .jsonl files "
    "with input and target. Text is fetched through pip or apt on first use.",
)
METRICS = absl_flags.DEFINE_list(
    "metrics",
    [],
    "Metrics instead of the tasks' own: accuracy, macro_f1, rouge1, rouge2, "
    "rougeL, bleu, chrf, exact_match, token_f1.",
)
ANSWER_LENGTH = absl_flags.DEFINE_integer(
    "answer_length",
    None,
    "Most tokens of an answer, its end counted. Default: 32 in fine-tuning, "
    "then what the preset was fine-tuned with.",
    lower_bound=2,
    upper_bound=1 << 20,
)
TEST_EXAMPLES = absl_flags.DEFINE_integer(
    "test_examples",
    1000,
    "Most test examples of a task, evenly spaced; 0: all.",
    lower_bound=0,
)
# For `uses` of the two binaries.
NAMES = ("answer_length", "metrics", "task", "test_examples")
DEFAULT_ANSWER_LENGTH = 32


class Loaded(NamedTuple):
    """A task and its examples."""

    task: Any
    splits: Any


def load() -> list[Loaded]:
    """The tasks of `--task` with their examples.

    Raises:
        UsageError: if one is unknown or can't be had, or a metric is unknown.
    """
    import dataclasses

    from keras_switch import tasks

    with flags.blame("task"):
        found = tasks.find(TASK.value)
        loaded = [Loaded(task, tasks.load(task)) for task in found]
    if not METRICS.value:
        return loaded
    with flags.blame("metrics"):
        return [
            Loaded(dataclasses.replace(task, metrics=METRICS.value), splits)
            for task, splits in loaded
        ]


def check_metrics_packages(loaded: list[Loaded]) -> None:
    """Tries every metric before there is anything to measure.

    Raises:
        UsageError: if a package is missing.
    """
    from keras_switch import tasks

    for task, _ in loaded:
        try:
            tasks.compute(task.metrics, ["a"], ["a"])
        except ImportError as error:
            raise flags.UsageError(f"--task={task.name}: {error}") from error


def test_examples(splits: Any) -> list:
    """The test examples that `--test_examples` allows."""
    from keras_switch import tasks

    return tasks.sample(splits.test, TEST_EXAMPLES.value or None)


def task_class(preset: str | None = None) -> type:
    """The class of the model in a preset, by default in `--preset`."""
    from keras_switch import convert, files, models
    from keras_switch.models.presets import find_preset

    with flags.blame("preset"):
        folder = find_preset(preset or flags.PRESET.value).folder
        if convert.kind_of(folder) == "t5x":
            raise ValueError(
                "a checkpoint of T5X has no tokenizer; convert.py makes a "
                "preset of it."
            )
        config = files.read_json(os.path.join(folder, "config.json"))
    alone = (
        config.get("model_type") == "mixtral"
        or config.get("registered_name") == "keras_switch>SwitchCausalBackbone"
    )
    return models.SwitchCausalLM if alone else models.SwitchSeq2SeqLM


def log_cuts(name: str, encoded: Any) -> None:
    """Says how many texts were cut."""
    count = len(encoded.inputs)
    for what, cut, flag in (
        ("inputs", encoded.cut_inputs, "input_length"),
        ("targets", encoded.cut_targets, "answer_length"),
    ):
        if cut:
            logging.info(
                "%s: %d of %d %s are longer than --%s and are cut",
                *(name, cut, count, what, flag),
            )
