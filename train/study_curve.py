"""The curve of an arm of `study.py`. Imports Keras: import it in `main`."""

import csv
import os
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_switch import analysis, files


class Curve(keras.callbacks.Callback):
    """Writes a row for each evaluation, with the seconds of training alone.

    Neither evaluations nor the first step after one are counted, which may
    compile, nor what a run did since its last evaluation when it was stopped;
    the time of the other steps is scaled to all. `seconds` are those
    of the clock, `cpu_seconds` those the process computed.

    Args:
        path: The CSV file to write.
        parts: Further sets for `evaluate`, by name. Each has a column of its
            own, `val_loss of <name>`, and `val_loss` is the mean of them.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        parts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._path = path
        self._parts = parts or {}
        self._rows = []
        self._step = self._timed = self._pending = 0
        self._totals = {"seconds": 0.0, "cpu_seconds": 0.0}
        self._started = None

    def get_state(self) -> dict[str, Any]:
        """For `ResumableCheckpoint`."""
        return {
            "rows": self._rows,
            "step": self._step,
            "timed": self._timed,
            "totals": self._totals,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """The state that `get_state` gave."""
        self._rows, self._totals = state["rows"], state["totals"]
        self._step, self._timed = state["step"], state["timed"]

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        if self._started is None:
            float(logs["loss"])  # waits for the step
            self._started = time.monotonic(), time.process_time()
        else:
            self._pending += 1

    def on_test_begin(self, logs=None):
        float(self.model.metrics[0].result())  # waits for the last step
        now = time.monotonic(), time.process_time()
        for name, start, end in zip(
            self._totals, self._started, now, strict=True
        ):
            self._totals[name] += end - start
        # A run that is stopped before loses the time and the steps alike.
        self._timed += self._pending
        self._pending, self._started = 0, None

    def on_epoch_end(self, epoch, logs=None):
        scale = self._step / max(self._timed, 1)
        row = {"step": self._step}
        row |= {name: scale * t for name, t in self._totals.items()}
        row |= {name: float(value) for name, value in logs.items()}
        row |= self._evaluate_parts()
        self._rows.append(row)
        with files.atomic_write(self._path) as temporary:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, row)
                writer.writeheader()
                writer.writerows(self._rows)
        print(
            f"step {self._step} held-out loss {row['val_loss']:.4f} "
            f"{1e3 * row['seconds'] / self._step:.0f} ms a step",
            flush=True,
        )

    def _evaluate_parts(self):
        losses = {}
        for name, part in self._parts.items():
            logs = self.model.evaluate(part, verbose=0, return_dict=True)
            losses[f"val_loss of {name}"] = float(logs["loss"])
        if losses:
            losses["val_loss"] = sum(losses.values()) / len(losses)
        return losses


class Churn(keras.callbacks.Callback):
    """Adds `routing/churn` to the logs: how unsettled the routers are.

    It is the share of choices on one held-out batch that were not made at the
    evaluation before, over all layers; NaN at the first one, and at the first
    after a run went on. Put it before `Curve`.

    Args:
        batch: Inputs of the model.
    """

    def __init__(self, batch: Any) -> None:
        super().__init__()
        self._batch = batch
        self._before = None

    def on_epoch_end(self, epoch, logs=None):
        now = analysis.chosen_experts(self.model.backbone, self._batch)
        churn = np.nan
        if self._before is not None:
            new = sum(int((now[n] & ~self._before[n]).sum()) for n in now)
            churn = new / sum(int(chosen.sum()) for chosen in now.values())
        self._before = now
        logs["routing/churn"] = churn
