"""One side of `benchmark.py --what=profile`, in a process of its own.

Arguments: the side, a folder that `layer_speed.write` has filled, and what the
side computes with. Answers `do="forward"` or `do="training"`, `times` calls of
which are traced, with what `profile_trace.profile` found.
"""

import sys
from collections.abc import Callable
from typing import Any

from keras_switch_train import layer_worker, profile_trace, workers


def make(side: str, folder: str, backend: str) -> Callable[..., dict[str, Any]]:
    """Loads a side; returns the function that answers requests."""
    calls, _ = layer_worker.load(side, folder)

    def answer(do, times):
        if do not in calls:
            raise ValueError(
                f"do must be one of {', '.join(calls)} for {side}; received "
                f"{do!r}."
            )
        return profile_trace.profile(calls[do], times, backend)

    return answer


if __name__ == "__main__":
    workers.serve(make, sys.argv[1:])
