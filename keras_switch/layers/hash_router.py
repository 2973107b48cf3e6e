"""Routing by the token itself: a fixed table, nothing learned."""

import random
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_switch.layers.hash_tables import random_table
from keras_switch.layers.routes import best_experts
from keras_switch.layers.routing import Router
from keras_switch.layers.validation import check_number
from keras_switch.ops.state import assign

# Its softmax is 0, and no infinity comes near a loss.
_NEVER = -1e9


@keras.saving.register_keras_serializable(package="keras_switch")
class HashRouter(Router):
    """Router of Hash Layers: a token's id says its expert.

    The table `[num_hashes, vocabulary_size]` is an int weight that is not
    trained; it is saved and resumed with the model. It starts as
    `hash_tables.random_table`; `assign_table` puts another in its place, such
    as `hash_tables.balanced_table` by the counts of a corpus. Nothing is
    learned: the gate is 1, there is no kernel and no loss. A route depends on
    its own token alone, so nothing is leaked, and cached decoding routes as a
    full pass does.

    With `num_hashes` above 1 a token goes to so many experts, whose outputs
    are added: together they are one feed-forward whose hidden layer is put
    together from segments, each chosen by a hash of its own. Make the experts
    `num_hashes` times as narrow for equal work. (The paper's MultiHash splits
    the second matrix by its outputs instead.)

    The layer needs `token_ids`, which `SwitchBackbone` hands on.

    Args:
        num_experts: int, as `Router`.
        vocabulary_size: int, columns of the table, T5's 32,128. A larger id
            is looked up at its remainder.
        num_hashes: int, at least 1, experts of a token.
        seed: optional int, of the first table. With it all layers that are
            made from one template share the table.

    Reference: Roller et al. 2021, Hash Layers (arXiv 2106.04426), section 3.
    """

    needs_token_ids = True
    settings = ("num_experts", "vocabulary_size", "num_hashes", "seed")

    def __init__(
        self,
        num_experts: int | None = None,
        vocabulary_size: int = 32128,
        num_hashes: int = 1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._refuse_settings(kwargs)
        super().__init__(
            num_experts,
            exploration="argmax",
            load_balancing_loss_weight=0.0,
            seed=seed,
            **kwargs,
        )
        vocabulary_size = check_number(
            "vocabulary_size", vocabulary_size, True, at_least=1
        )
        check_number("num_hashes", num_hashes, whole=True, at_least=1)
        if num_experts is not None and num_hashes > num_experts:
            raise ValueError(
                "num_hashes must be at most num_experts; received "
                f"num_hashes={num_hashes}, num_experts={num_experts}."
            )
        self.vocabulary_size = vocabulary_size
        self.num_hashes = self.num_choices = num_hashes

    def _make_weights(self, width):
        del width
        # As Keras' seed generators: `keras.utils.set_random_seed` rules it.
        seed = self.seed
        if seed is None:
            seed = random.randrange(2**31)  # nosec B311 - no secret
        shape = (self.num_hashes, self.vocabulary_size)
        self.table = self.add_weight(
            name="table",
            shape=shape,
            initializer="zeros",
            dtype="int32",
            trainable=False,
            autocast=False,
        )
        table = random_table(
            self.vocabulary_size, self.num_experts, self.num_hashes, seed
        )
        assign(self.table, table)

    def trainable_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """None."""
        del width
        return {}

    def assign_table(self, table: Any) -> None:
        """Puts another table in place, of a built layer.

        Args:
            table: int `[num_hashes, vocabulary_size]`, the experts of each
                token, different ones.

        Raises:
            ValueError: for another shape, or what is no expert.
        """
        table = np.asarray(table)
        wanted = (self.num_hashes, self.vocabulary_size)
        if table.shape != wanted or table.dtype.kind not in "iu":
            raise ValueError(
                f"table must be of ints and of shape {wanted}, [num_hashes, "
                f"vocabulary_size]; received {table.dtype} of shape "
                f"{table.shape}."
            )
        if table.min() < 0 or table.max() >= self.num_experts:
            raise ValueError(
                f"table must hold experts from 0 to {self.num_experts - 1}; "
                f"received some from {table.min()} to {table.max()}."
            )
        ranked = np.sort(table, axis=0)
        if (ranked[1:] == ranked[:-1]).any():
            raise ValueError(
                "table must hold different experts in each column; received "
                "one twice."
            )
        assign(self.table, table.astype("int32"))

    def _look_up(self, token_ids):
        """Logits whose softmax is spread over the token's experts."""
        table = ops.convert_to_tensor(self.table)
        column = ops.mod(token_ids, self.vocabulary_size)
        found = ops.take(table, column, axis=1)  # [K, G, S]
        experts = ops.arange(self.num_experts, dtype="int32")
        is_one = ops.expand_dims(found, -1) == experts
        other = ops.logical_not(ops.any(is_one, axis=0))  # [G, S, E]
        return _NEVER * ops.cast(other, "float32") - np.log(self.num_hashes)

    def choose(self, probs, scores, training=None):
        del probs, training
        # Of equal right, so that the lowest index comes first.
        expert_index = best_experts(scores, self.num_hashes)
        return expert_index, ops.ones(ops.shape(expert_index), "float32")
