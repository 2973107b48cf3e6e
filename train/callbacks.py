"""What `fit` calls while it pre-trains. Imports Keras: import it in `main`."""

import importlib.util
import os
import time
from collections.abc import Sequence

import keras
from absl import logging
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)


class StopAfter(keras.callbacks.Callback):
    """Ends training after so many minutes or steps, whichever comes first.

    In a resumed run, what came before counts too.

    Args:
        minutes: Since training began, evaluation included; `None`: no limit.
        steps: `None`: no limit.
    """

    def __init__(self, minutes: float | None, steps: int | None):
        super().__init__()
        self.minutes = minutes
        self.steps = steps
        self.done = 0

    def on_train_begin(self, logs=None):
        self.start = time.monotonic()

    def get_state(self):
        return {"done": self.done, "elapsed": self._elapsed()}

    def set_state(self, state):
        self.done = state["done"]
        self.start = time.monotonic() - state["elapsed"]

    def on_train_batch_end(self, batch, logs=None):
        self.done += 1
        elapsed = self._elapsed()
        late = self.minutes is not None and elapsed > 60 * self.minutes
        if late or self.done == self.steps:
            self.model.stop_training = True

    @property
    def fraction(self) -> float:
        """How much of the shorter limit is used up, from 0 to 1."""
        fractions = [0.0]
        if self.minutes:
            fractions.append(self._elapsed() / (60 * self.minutes))
        if self.steps:
            fractions.append(self.done / self.steps)
        return min(1.0, max(fractions))

    def _elapsed(self):
        return time.monotonic() - self.start


class Report(keras.callbacks.Callback):
    """A line for each interval, and a progress bar on a terminal.

    Adds `step`, `steps_per_second` and `tokens_per_second` to the logs, so
    that they reach `History` and files; give it before other callbacks. Rates
    are taken from the end of an interval's first step, which may compile, to
    the end of its last; in an interval that was resumed, from then on.

    Args:
        limit: The `StopAfter` of this training.
        tokens_per_step: Tokens of a batch without padding.
        shown: Names in the logs to print as well.
    """

    def __init__(
        self,
        limit: StopAfter,
        tokens_per_step: float,
        shown: Sequence[str] = (),
    ):
        super().__init__()
        self.shown = shown
        self.limit = limit
        self.tokens_per_step = tokens_per_step
        self.console = Console(soft_wrap=True)
        self.bar = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.step = 0

    def get_state(self):
        return {"step": self.step}

    def set_state(self, state):
        self.step = state["step"]

    def on_train_begin(self, logs=None):
        self.bar.start()
        self.task = self.bar.add_task("", total=1.0, step=0, loss=0.0)

    def on_train_end(self, logs=None):
        self.bar.stop()

    def on_epoch_begin(self, epoch, logs=None):
        self.times = []

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.times.append(time.monotonic())
        self.bar.update(
            self.task,
            completed=self.limit.fraction,
            step=self.step,
            loss=float((logs or {}).get("loss", 0.0)),
        )

    def on_epoch_end(self, epoch, logs=None):
        steps, seconds = len(self.times) - 1, self.times[-1] - self.times[0]
        rate = steps / seconds if steps else 0.0
        logs["step"] = self.step
        logs["steps_per_second"] = rate
        logs["tokens_per_second"] = rate * self.tokens_per_step
        self.console.print(_line(logs, self.shown), highlight=False)


def _line(logs, shown=()):
    parts = [f"step {logs['step']:6,d}"]
    if "val_loss" in logs:
        parts.append(f"held-out loss {logs['val_loss']:.4f}")
    parts.append(f"loss {logs['loss']:.4f}")
    for name in shown:
        if name != "val_loss" and name in logs:
            title = name.removeprefix("val_").replace("_", " ")
            parts.append(f"held-out {title} {logs[name]:.1f}")
    for statistic, title, form in (
        ("dropped_fraction", "dropped", "{:.1%}"),
        ("max_mean_load", "max/mean load", "{:.2f}"),
    ):
        values = [
            value
            for name, value in logs.items()
            if name.endswith("/" + statistic) and not name.startswith("val_")
        ]
        if values:
            mean = sum(values) / len(values)
            parts.append(f"{title} {form.format(mean)}")
    parts.append(f"{logs['steps_per_second']:.2f} step/s")
    parts.append(f"{logs['tokens_per_second']:,.0f} tokens/s")
    return " | ".join(parts)


def files(workdir: str) -> list:
    """Callbacks that write `history.csv` and, if it is there, TensorBoard's."""
    history = keras.callbacks.CSVLogger(os.path.join(workdir, "history.csv"))
    if importlib.util.find_spec("tensorboard") is None:
        logging.info("TensorBoard is not installed: no event files.")
        return [history]
    folder = os.path.join(workdir, "tensorboard")
    return [history, keras.callbacks.TensorBoard(folder, update_freq="epoch")]
