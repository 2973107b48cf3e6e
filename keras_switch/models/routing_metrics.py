"""What the routers of a model did, averaged over an epoch."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routing_stats import STATISTICS


class RoutingMetrics(keras.metrics.Metric):
    """Means of the routing statistics of a model's sparse layers.

    Each batch counts by the number of its tokens, padding left out. The result
    is a dict, whose entries Keras logs as metrics of their own:
    `"encoder_layer_1/dropped_fraction"` and so on.

    Args:
        layers: A dict from the name of each sparse layer to its `SwitchLayer`.
        per_layer: Whether to report each layer. Otherwise the mean over the
            layers, as `"routing/dropped_fraction"` and so on.
        **kwargs: `name`.
    """

    def __init__(
        self, layers: dict[str, Any], per_layer: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(name=kwargs.pop("name", "routing"), **kwargs)
        self.per_layer = per_layer
        self.prefixes = tuple(layers)
        self.stats = tuple(layer.routing_stats for layer in layers.values())
        self.total = self.add_variable(
            shape=(len(layers), len(STATISTICS)),
            initializer="zeros",
            name="total",
        )
        self.count = self.add_variable(
            shape=(len(layers), 1), initializer="zeros", name="count"
        )

    def update_state(self) -> None:
        """Adds what each router did in the last call."""
        rows = [ops.expand_dims(stats.value, 0) for stats in self.stats]
        values = ops.concatenate(rows, axis=0)  # [layers, statistics + 1]
        means, tokens = values[:, :-1], values[:, -1:]
        self.total.assign_add(ops.where(tokens > 0, means * tokens, 0.0))
        self.count.assign_add(tokens)

    def result(self) -> dict[str, Any]:
        """Returns a dict of scalars."""
        total = ops.convert_to_tensor(self.total)
        count = ops.convert_to_tensor(self.count)
        prefixes = self.prefixes
        if not self.per_layer:
            total = ops.sum(total, axis=0, keepdims=True)
            count = ops.sum(count, axis=0, keepdims=True)
            prefixes = ("routing",)
        means = total / ops.maximum(count, 1.0)
        return {
            f"{prefix}/{statistic}": means[row, column]
            for row, prefix in enumerate(prefixes)
            for column, statistic in enumerate(STATISTICS)
        }
