"""The arms of a study, each trained in a process of its own, and its flags."""

import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags as absl_flags

from keras_switch_train import cores, flags, pool

SEEDS = absl_flags.DEFINE_multi_integer(
    "seeds",
    [0, 1],
    "Seeds of weights and data; may be given several times. Each trains every "
    "arm.",
    lower_bound=0,
)
STEPS = absl_flags.DEFINE_integer(
    "main_steps", 6000, "Of the main arms.", lower_bound=1
)
EVAL_EVERY = absl_flags.DEFINE_integer(
    "interval",
    250,
    "Steps between evaluations, which divides the numbers of steps.",
    lower_bound=1,
)
VOCABULARY_SIZE = absl_flags.DEFINE_integer(
    "vocabulary_size",
    4000,
    "Pieces of the vocabulary, made from the corpus.",
    lower_bound=300,
)
SMOKE = absl_flags.DEFINE_bool(
    "smoke",
    False,
    "The whole in two minutes, with few arms of few steps. Shows that it "
    "runs, not what is true.",
)
# For `uses` of a binary.
NAMES = ("interval", "main_steps", "seeds", "smoke", "vocabulary_size")
# In the folder of the study.
VOCABULARY = "vocabulary.spm"


def prepare(
    folder: str, train: Sequence[Any], held_out: Sequence[Any], size: int
) -> None:
    """Makes the vocabulary and encodes the corpus, before there are workers.

    Args:
        folder: Of the study. A vocabulary that is there already is kept.
        train: Documents.
        held_out: Documents.
        size: Pieces of the vocabulary.
    """
    from keras_switch import data

    path = os.path.join(folder, VOCABULARY)
    if not os.path.exists(path):
        data.train_sentencepiece(
            [document.text for document in train], size, path
        )
    for side in (train, held_out):
        data.encode_documents(side, path, data.cache_directory())


def write_arm(job: str, wanted: Mapping[str, Any]) -> None:
    """Writes what an arm is trained with as `arm.json`.

    Args:
        job: The folder of the arm; made if it is missing.
        wanted: JSON values.

    Raises:
        UsageError: if the arm was begun with other settings.
    """
    from keras_switch import files

    path = os.path.join(job, "arm.json")
    if os.path.exists(path):
        found = files.read_json(path)
        changed = [k for k in wanted if found.get(k) != wanted[k]]
        if changed:
            raise flags.UsageError(
                f"--workdir: {job} was begun with other settings, in "
                f"{', '.join(changed)}. Use another folder, or delete it."
            )
        return
    os.makedirs(job, exist_ok=True)
    with files.atomic_write(path) as file:
        file.write_text(json.dumps(wanted, indent=1), encoding="utf-8")


def run(jobs: Sequence[str]) -> list[Any]:
    """Trains arms, one worker on each core, until there are no more.

    Args:
        jobs: Folders with `arm.json`; those that are done are left out.

    Returns:
        The processes that failed, for `check`.
    """
    return pool.run(
        [
            functools.partial(_start, job)
            for job in jobs
            if not os.path.exists(f"{job}/ends.json")
        ],
        cores.ids(),
    )


def check(failed: Sequence[Any]) -> None:
    """Raises a `RuntimeError` with the last words of those that failed."""
    if failed:
        said = "\n".join(process.tail() for process in failed)
        raise RuntimeError(f"These arms must be trained; they failed:\n{said}")


def _start(job, core):
    """A worker that trains the arm of a folder."""
    module = "keras_switch_train.study_worker"
    command = [sys.executable, "-m", module, job, str(core)]
    return pool.Process(job, command, core)
