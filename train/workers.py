"""Processes that hold one side of a comparison each, and are asked in turns.

A side runs in a process of its own, because libraries fight over the cores of
one: threads of torch that wait for work slow down JAX. A request and its answer
are JSON objects, one a line, over stdin and stdout.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from keras_switch_train import heap

# Threads of OpenMP go on spinning for some milliseconds after a call.
_REST = 0.05


class Worker:
    """A process that holds one side of a comparison, and starts at once.

    Args:
        module: Of this package; its `main` must call `serve`.
        arguments: Its command line.
        backend: What Keras computes with there.
        retain_heap: Whether freed memory is kept there.
    """

    def __init__(
        self,
        module: str,
        arguments: Sequence[str],
        backend: str,
        retain_heap: bool,
    ) -> None:
        self._name = " ".join([module, *arguments])
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                f"keras_switch_train.{module}",
                "retain" if retain_heap else "leave",
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "TF_CPP_MIN_LOG_LEVEL": "2",
            },
        )

    @functools.cached_property
    def head(self) -> dict[str, Any]:
        """What the process said of itself when it was ready: its `heap`."""
        return self._answer()

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RuntimeError: if the process has ended; what it said is on stderr.
        """
        _ = self.head  # the first line it writes
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_answer` tells how it ended
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"The process of {self._name} must answer; it ended with exit "
                f"code {self._process.wait()}."
            )
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # it has ended
        self._process.wait()
        self._process.stdout.close()


def in_turns(
    workers: dict[str, Worker], repeats: int, **request: Any
) -> dict[str, list[float]]:
    """Seconds that the same request takes each side.

    The sides are asked in turns, so that a busy machine hits all alike, every
    other turn backwards, so that none always follows the same one; and one
    side's threads are asleep before the next is asked.

    Args:
        workers: By the name of their side; their answers have `seconds`.
        repeats: Turns.
        **request: What to ask.

    Returns:
        `repeats` samples of each side.
    """
    samples = {side: [] for side in workers}
    for turn in range(repeats):
        for side, worker in list(workers.items())[:: -1 if turn % 2 else 1]:
            time.sleep(_REST)
            samples[side].append(worker.ask(**request)["seconds"])
    return samples


def spread(
    name: str, samples: Sequence[float], scale: float, unit: str
) -> dict[str, float]:
    """Median, best and worst of samples, as columns of a row.

    Args:
        name: Whose they are.
        samples: Seconds.
        scale: Units in a second.
        unit: Its name.

    Returns:
        Three columns, to four digits.
    """
    values = {
        f"{name} {unit}": statistics.median(samples),
        f"{name} best": min(samples),
        f"{name} worst": max(samples),
    }
    return {k: float(f"{value * scale:.4g}") for k, value in values.items()}


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """How many times as long one side took, as columns of a row."""
    medians = statistics.median(above) / statistics.median(below)
    bests = min(above) / min(below)
    return {"medians": round(medians, 2), "bests": round(bests, 2)}


def require_same(
    records: dict[str, dict[str, Any]],
    names: Sequence[str],
    tolerance: float = 0.0,
) -> None:
    """Refuses to compare sides that did not do the same work.

    Args:
        records: By side: what it did.
        names: Entries that must be the same.
        tolerance: Largest difference of numbers, relative to the larger one.

    Raises:
        RuntimeError: with what differs.
    """
    (first, ours), *others = records.items()
    for side, theirs in others:
        for name in names:
            if not _same(ours[name], theirs[name], tolerance):
                raise RuntimeError(
                    "Two sides must do the same work to be compared; their "
                    f"{name} differ: {ours[name]} ({first}), {theirs[name]} "
                    f"({side})."
                )


def _same(a, b, tolerance):
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return abs(a - b) <= tolerance * max(abs(a), abs(b))
    return a == b


def serve(
    make: Callable[..., Callable[..., dict[str, Any]]], argv: Sequence[str]
) -> None:
    """The main function of a worker's process: answers until stdin ends.

    Args:
        make: Loads a side, given the arguments of the process; returns the
            function that answers a request, called by keyword.
        argv: Of the process, without its name.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nobody else's lines
    retain, *arguments = argv
    line = "heap: left alone (--noretain_heap)"
    if retain == "retain":
        line = heap.retain()
    answer = make(*arguments)
    heap.release()
    print(json.dumps({"heap": line}), file=answers, flush=True)
    for request in sys.stdin:
        reply = answer(**json.loads(request))
        if "seconds" not in reply:  # not timed, so maybe larger than the rest
            heap.release()
        print(json.dumps(reply), file=answers, flush=True)
