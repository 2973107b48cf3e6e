"""What a router did in its last call, kept where `fit` can read it."""

from typing import Any

import keras
from keras import ops

from keras_switch.losses import load_balancing_loss, router_z_loss
from keras_switch.ops.state import record

STATISTICS = (
    "dropped_fraction",
    "max_mean_load",
    "dead_expert_fraction",
    "router_confidence",
    "router_entropy",
    "load_balancing_loss",
    "router_z_loss",
)


@keras.saving.register_keras_serializable(package="keras_switch")
class RoutingStats(keras.layers.Layer):
    """The statistics of a router's last call, in one non-trainable variable.

    A variable, because a Keras metric updated inside `call` is lost on JAX;
    not part of a saved model, because it describes a batch and not the model.

    `value` is float32 `[8]`: the entries of `STATISTICS`, then the number of
    tokens they were taken over. Padding is left out.

    - `dropped_fraction`: edges over capacity / edges that wanted a slot; where
      experts choose, tokens that none chose / tokens.
    - `max_mean_load`: the largest load over the mean load, before capacity.
    - `dead_expert_fraction`: experts that no token wanted / experts.
    - `router_confidence`: mean of the largest probability.
    - `router_entropy`: mean entropy of the probabilities, in nats.
    - `load_balancing_loss`, `router_z_loss`: without their weights.
    """

    names = STATISTICS

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.autocast = False  # what it measures stays in float32

    def build(self, input_shape: Any = None) -> None:
        self.value = self.add_weight(
            name="value",
            shape=(len(STATISTICS) + 1,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="mean",
        )
        self.built = True

    def call(self, logits, probs, expert_index, first, dropped, valid):
        # logits, probs [G, S, E]; expert_index [G, M]; first, valid [G, S]
        real = ops.cast(valid, "float32")  # [G, S]
        count = ops.sum(real)
        load = load_of(expert_index, probs.shape[-1])
        statistics = (
            dropped,
            _max_mean_load(load),
            _dead_fraction(load),
            _mean(ops.max(probs, axis=-1), real, count),
            _mean(_entropy(probs), real, count),
            load_balancing_loss(probs, first, valid),
            router_z_loss(logits, valid),
            count,
        )
        record(self.value, ops.stop_gradient(ops.stack(statistics)))

    def save_own_variables(self, store: Any) -> None:
        """Saves nothing: a batch's statistics are not the model's."""
        del store

    def load_own_variables(self, store: Any) -> None:
        """Loads nothing."""
        del store


def _mean(values: Any, real: Any, count: Any) -> Any:
    return ops.sum(values * real) / ops.maximum(count, 1.0)


def _entropy(probs: Any) -> Any:
    # p log p tends to 0 where p underflows, log p alone does not.
    return -ops.sum(probs * ops.log(ops.maximum(probs, 1e-30)), axis=-1)


def load_of(expert_index: Any, experts: int) -> Any:
    """Edges of each expert, before capacity: `[G, M]` -> float32 `[E]`."""
    ids = ops.arange(experts, dtype="int32")
    mine = ops.expand_dims(expert_index, -1) == ids  # [G, M, E]
    return ops.sum(ops.cast(mine, "float32"), axis=(0, 1))  # [E]


def _max_mean_load(load: Any) -> Any:
    mean = ops.mean(load)
    return ops.max(load) / ops.where(mean > 0, mean, 1.0)


def _dead_fraction(load: Any) -> Any:
    dead = ops.mean(ops.cast(load == 0, "float32"))
    return ops.where(ops.max(load) > 0, dead, 0.0)
