"""The arms of a study, each trained in a process of its own."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from keras_switch_train import cores, flags

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
    running, failed, free = {}, [], cores.ids()
    jobs = [job for job in jobs if not os.path.exists(f"{job}/ends.json")]
    try:
        while jobs or running:
            for core in free:
                if jobs and core not in running:
                    running[core] = _Process(jobs.pop(0), core)
            time.sleep(0.2)
            for core, process in list(running.items()):
                if process.ended():
                    failed += [process] if process.code else []
                    del running[core]
    finally:
        # SIGTERM or an error: each saves its step, and goes on another time.
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def check(failed: Sequence[Any]) -> None:
    """Raises a `RuntimeError` with the last words of those that failed."""
    if failed:
        said = "\n".join(process.tail() for process in failed)
        raise RuntimeError(f"These arms must be trained; they failed:\n{said}")


class _Process:
    """A worker that trains the arm of a folder."""

    def __init__(self, job, core):
        self.job = job
        self.log = os.path.join(job, "log.txt")
        logging.info("%s: on core %d, see %s", job, core, self.log)
        with open(self.log, "a") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "keras_switch_train.study_worker",
                    job,
                    str(core),
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.code = None

    def ended(self):
        self.code = self._process.poll()
        return self.code is not None

    def terminate(self):
        self._process.terminate()

    def wait(self):
        self._process.wait()

    def tail(self):
        with open(self.log, errors="replace") as log:
            lines = log.read().splitlines()[-5:]
        return "\n".join([f"{self.job}, exit code {self.code}:", *lines])
