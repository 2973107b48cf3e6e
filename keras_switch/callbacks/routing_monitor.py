"""A callback that shows what routers do while `fit` runs."""

from typing import Any

import keras

from keras_switch.layers.routing_stats import STATISTICS
from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.validation import check_number
from keras_switch.ops.state import synchronize

TOKENS = "tokens"


class RoutingMonitor(keras.callbacks.Callback):
    """Adds the statistics of every `SwitchLayer` of a model to the logs.

    They appear in the progress bar, in `History`, and in TensorBoard and CSV
    logs of callbacks listed after this one, as `<layer>/dropped_fraction`,
    `<layer>/max_mean_load`, `<layer>/dead_expert_fraction`,
    `<layer>/router_confidence`,
    `<layer>/router_entropy`, `<layer>/load_balancing_loss` and
    `<layer>/router_z_loss`, each a mean over the epoch's tokens without
    padding; in validation with `val_` before it. `SwitchSeq2SeqLM` reports
    them by itself and needs no callback.

    Args:
        every: int, batches from one reading to the next (with
            `steps_per_execution`, groups of batches). A reading on JAX copies
            the training state back to the model; with a very short step, read
            more seldom.

    Raises:
        ValueError: when training starts, for a model without a `SwitchLayer`.

    Example:

    ```python
    model.fit(x, y, callbacks=[keras_switch.RoutingMonitor()])
    ```
    """

    def __init__(self, every: int = 1) -> None:
        super().__init__()
        every = check_number("every", every, whole=True, at_least=1)
        self.every = every
        self._layers: dict[str, SwitchLayer] = {}
        self._validation: dict[str, float] = {}
        self._restart()

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._layers = switch_layers(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._require_layers()

    def on_test_begin(self, logs: Any = None) -> None:
        self._require_layers()
        # Validation inside an epoch must not touch the epoch's totals.
        self._kept = self._calls, self._totals, self._counts
        self._restart()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._validation = {}
        self._restart()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._read(logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._read(logs)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._report(logs)
        if logs is not None:
            logs.update(self._validation)

    def on_test_end(self, logs: Any = None) -> None:
        # `evaluate` hands its callbacks a copy of the logs it returns.
        means = self._means()
        self._validation = {f"val_{name}": means[name] for name in means}
        self._calls, self._totals, self._counts = self._kept

    def get_state(self) -> dict[str, Any]:
        """What a resumed epoch needs, for `ResumableCheckpoint`."""
        return {
            "calls": self._calls,
            "totals": self._totals,
            "counts": self._counts,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        self._calls = state["calls"]
        self._totals = dict(state["totals"])
        self._counts = dict(state["counts"])

    def _restart(self) -> None:
        self._calls = 0
        self._totals: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def _require_layers(self) -> None:
        if not self._layers:
            raise ValueError(
                "RoutingMonitor needs a model with at least one SwitchLayer; "
                f"received a {type(self.model).__name__} without."
            )

    def _read(self, logs: Any) -> None:
        # Counted here: with steps_per_execution, Keras skips batch numbers.
        self._calls += 1
        if (self._calls - 1) % self.every:
            return
        for name, values in read_statistics(self.model, self._layers).items():
            tokens = values.pop(TOKENS)
            self._counts[name] = self._counts.get(name, 0.0) + tokens
            for statistic, value in values.items():
                key = f"{name}/{statistic}"
                total = self._totals.get(key, 0.0)
                self._totals[key] = total + tokens * value
        self._report(logs)

    def _report(self, logs: Any) -> None:
        if logs is not None:
            logs.update(self._means())

    def _means(self) -> dict[str, float]:
        return {
            key: total / max(self._counts[key.rsplit("/", 1)[0]], 1.0)
            for key, total in self._totals.items()
        }


def read_statistics(
    model: keras.Model, layers: dict[str, SwitchLayer]
) -> dict[str, dict[str, float]]:
    """What routers did in the last batch.

    Args:
        model: The model that is training.
        layers: Its sparse layers by name.

    Returns:
        For each layer its statistics by name, and its `"tokens"`.
    """
    synchronize(model)
    return {
        name: dict(
            zip(
                (*STATISTICS, TOKENS),
                keras.ops.convert_to_numpy(layer.routing_stats.value).tolist(),
                strict=True,
            )
        )
        for name, layer in layers.items()
    }


def switch_layers(model: keras.Model) -> dict[str, SwitchLayer]:
    """The `SwitchLayer`s of a model by name.

    A layer that shares its name with another takes its path instead.
    """
    found = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, SwitchLayer)
    ]
    names = [layer.name for layer in found]
    return {
        (layer.path if names.count(layer.name) > 1 else layer.name): layer
        for layer in found
    }
