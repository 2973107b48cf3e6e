"""A callback that says when a router has collapsed."""

import warnings
from typing import Any

import keras
import numpy as np

from keras_switch.callbacks.routing_monitor import (
    TOKENS,
    read_statistics,
    switch_layers,
)
from keras_switch.layers.validation import check_number

# What to try, by the statistic that gave the alarm.
_ADVICE = {
    "max_mean_load": (
        "Most tokens go to few experts, so the others do not learn. Try a "
        "larger load_balancing_loss_weight in the router, a lower learning "
        "rate or a longer warm-up, and jitter."
    ),
    "dead_expert_fraction": (
        "Experts that no token wants do not learn. Try a larger "
        "load_balancing_loss_weight in the router, jitter, a longer warm-up, "
        "or fewer experts."
    ),
    "dropped_fraction": (
        "Many tokens reach no expert. Try a larger capacity_factor, a larger "
        'group_size, dispatch="dropless", or a larger '
        "load_balancing_loss_weight in the router."
    ),
}


class RoutingAlarm(keras.callbacks.Callback):
    """Warns of a `SwitchLayer` that has collapsed, and says what to try.

    A layer gives an alarm when one of its limits is passed in `patience`
    readings in a row; one warning, until it has been well again.

    Args:
        max_mean_load: The largest load over the mean load that is borne, as a
            part of the number of experts, where it would be 1 if all tokens
            went to one expert; above 0, at most 1.
        dead_expert_fraction: The largest part of the experts that no token of
            a batch may want, beyond those that chance leaves out where a batch
            has few tokens for each; above 0, at most 1.
        dropped_fraction: The largest part of the tokens that may find no room
            in their expert; above 0, at most 1.
        patience: int, readings in a row.
        every: int, batches from one reading to the next. A reading on JAX
            copies the training state back to the model.

    Raises:
        ValueError: for a bad argument; and when training starts, for a model
            without a `SwitchLayer`.

    Example:

    ```python
    model.fit(x, y, callbacks=[keras_switch.RoutingAlarm(every=10)])
    ```
    """

    def __init__(
        self,
        max_mean_load: float = 0.5,
        dead_expert_fraction: float = 0.5,
        dropped_fraction: float = 0.3,
        patience: int = 20,
        every: int = 10,
    ) -> None:
        super().__init__()
        self.limits = {
            "max_mean_load": max_mean_load,
            "dead_expert_fraction": dead_expert_fraction,
            "dropped_fraction": dropped_fraction,
        }
        for name, limit in self.limits.items():
            check_number(name, limit, above=0)
            if limit > 1:
                raise ValueError(
                    f"{name} must be at most 1; received {name}={limit!r}."
                )
        patience = check_number("patience", patience, whole=True, at_least=1)
        every = check_number("every", every, whole=True, at_least=1)
        self.patience = patience
        self.every = every

    def on_train_begin(self, logs: Any = None) -> None:
        self._layers = switch_layers(self.model)
        if not self._layers:
            raise ValueError(
                "RoutingAlarm needs a model with at least one SwitchLayer; "
                f"received a {type(self.model).__name__} without."
            )
        self._step = 0
        self._in_a_row: dict[str, int] = {}

    def get_state(self) -> dict[str, Any]:
        """What a resumed training needs, for `ResumableCheckpoint`."""
        return {"step": self._step, "in_a_row": self._in_a_row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        self._step = state["step"]
        self._in_a_row = dict(state["in_a_row"])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step += self.model.steps_per_execution
        if (self._step // self.model.steps_per_execution) % self.every:
            return
        statistics = read_statistics(self.model, self._layers)
        for layer, values in statistics.items():
            experts = self._layers[layer].num_experts
            # The experts that chance leaves without any of so many tokens.
            empty = np.exp(-values[TOKENS] / experts)
            for statistic, limit in self.limits.items():
                if statistic == "max_mean_load":
                    limit *= experts
                if statistic == "dead_expert_fraction":
                    limit = 1 - (1 - limit) * (1 - empty)
                self._judge(layer, statistic, values[statistic], limit)

    def _judge(self, layer, statistic, value, limit):
        key = f"{layer}/{statistic}"
        # A layer of one expert is always at its limit.
        bad = value > limit or np.isnan(value)
        self._in_a_row[key] = self._in_a_row.get(key, 0) + 1 if bad else 0
        if self._in_a_row[key] == self.patience:
            warnings.warn(
                f"{key} is {value:.2f}, above {limit:.2f} in the last "
                f"{self.patience} readings, at step {self._step}. "
                f"{_ADVICE[statistic]}",
                stacklevel=2,
            )
