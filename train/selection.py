"""How `finetune` finds its best weights. Imports Keras: import it in `main`."""

import sys
from collections.abc import Callable
from typing import Any

import keras

from keras_switch.ops.state import synchronize
from keras_switch_train import flags, task_flags


class Score(keras.callbacks.Callback):
    """Adds the mean of a metric over tasks to the logs of an evaluation.

    Give it before callbacks that read the logs.

    Args:
        metric: Its name; the logs have it with `val_` in front.
        asked: Pairs of a task and examples.
        answer: Takes a task and examples, returns strings.
    """

    def __init__(
        self,
        metric: str,
        asked: list[tuple[Any, list]],
        answer: Callable[[Any, list], list[str]],
    ) -> None:
        super().__init__()
        self.metric = metric
        self.asked = asked
        self.answer = answer

    def on_epoch_end(self, epoch, logs=None):
        from keras_switch import tasks

        synchronize(self.model)
        scores = []
        for task, examples in self.asked:
            if self.metric in task.metrics:
                found = tasks.compute(
                    [self.metric],
                    self.answer(task, examples),
                    [example.target for example in examples],
                )
                scores.append(found[self.metric])
        logs[f"val_{self.metric}"] = sum(scores) / len(scores)

    def get_state(self):
        """Nothing to remember; `ResumableCheckpoint` need not warn."""
        return {}

    def set_state(self, state):
        """Nothing to remember."""


def check_choice(name: str, loaded: list[task_flags.Loaded]) -> str:
    """What to look at in the logs.

    Args:
        name: As `--select`.
        loaded: The tasks.

    Returns:
        `"val_loss"`, or `val_` and the name of a metric.

    Raises:
        UsageError: if no task has that metric.
    """
    names = {metric for task, _ in loaded for metric in task.metrics}
    if name != "loss" and name not in names:
        raise flags.UsageError(
            f"--select must be loss, or one of {', '.join(sorted(names))} "
            f"with these tasks; received {name!r}."
        )
    return f"val_{name}"


def make(
    monitor: str,
    asked: list[tuple[Any, list]],
    answer: Callable[[Any, list], list[str]],
    patience: int,
) -> tuple[list[keras.callbacks.Callback], keras.callbacks.Callback]:
    """What scores, if anything must, and what keeps the best weights and stops.

    Args:
        monitor: From `check_choice`.
        asked: As in `Score`.
        answer: As in `Score`.
        patience: As `--patience`.

    Returns:
        Callbacks, and one more; the checkpoint must come behind them, so that
        the last state it saves is of the best weights.
    """
    by_loss = monitor == "val_loss"
    scores = []
    if not by_loss:
        scores = [Score(monitor.removeprefix("val_"), asked, answer)]
    best = keras.callbacks.EarlyStopping(
        monitor,
        mode="min" if by_loss else "max",
        patience=patience or sys.maxsize,
        restore_best_weights=True,
    )
    return scores, best


def best_of(history: dict[str, list], monitor: str) -> dict[str, Any]:
    """Where the best weights come from.

    Args:
        history: From `fit`.
        monitor: From `check_choice`.

    Returns:
        A dict for JSON: what was looked at, its best value, and the step.
    """
    values = history[monitor]
    best = min(values) if monitor == "val_loss" else max(values)
    step = history["step"][values.index(best)]
    return {"monitor": monitor, "value": float(best), "step": int(step)}
