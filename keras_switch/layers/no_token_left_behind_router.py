"""Top-1 routing in which a token that finds no room goes on to its next
choice."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import (
    RouterIndices,
    best_experts,
    gather_probs,
)
from keras_switch.layers.routing import Router
from keras_switch.layers.validation import check_number
from keras_switch.ops.indexing import expert_sizes, queue_positions


@keras.saving.register_keras_serializable(package="keras_switch")
class NoTokenLeftBehindRouter(Router):
    """Router of No-Token-Left-Behind: overflow goes to the next choice.

    First all tokens ask for the expert they find most probable, from left to
    right, as with `SwitchRouter`. Those that found its capacity taken then
    ask for their second choice, those that still have none for their third,
    up to the `k`-th; whoever has none after that is dropped. The gate is the
    probability of the expert that took the token. The load-balancing loss
    counts first choices. The paper found no benefit in it.

    Under a capacity a later token's first choice may take the slot that an
    earlier token would have come to by its second one. Without one this is
    `SwitchRouter`.

    Args:
        num_experts: int, as `Router`.
        k: int, at least 2, choices a token has (of `num_experts`, if these
            are fewer); Mesh-TensorFlow's 4.
        **kwargs: as `Router`, but for `batch_prioritized`.

    Reference: Fedus et al. 2022 (arXiv 2101.03961), appendix B.
    """

    settings = (
        *(name for name in Router.settings if "prioritized" not in name),
        "k",
    )

    def __init__(
        self, num_experts: int | None = None, k: int = 4, **kwargs: Any
    ) -> None:
        if "batch_prioritized" in kwargs:
            self._refuse_settings({"batch_prioritized": None})
        super().__init__(num_experts, **kwargs)
        k = check_number("k", k, whole=True, at_least=2)
        self.k = k

    def choose(self, probs, scores, training=None):
        del training
        best = best_experts(scores, 1)
        return best, gather_probs(probs, best)

    def route(self, probs, scores, valid, capacity, quota, training):
        if capacity is None:
            return super().route(
                probs, scores, valid, capacity, quota, training
            )
        experts = self.num_experts
        ranked = best_experts(scores, min(self.k, experts))  # [G, S, K]
        ranks = ranked.shape[-1]
        nowhere = ops.full_like(ranked[:, :, 0], experts)
        expert_index, slot_index, waiting = nowhere, nowhere, valid
        taken = expert_sizes(nowhere, experts + 1) * 0  # [G, E + 1]
        for rank in range(ranks + 1):
            # In the end those left behind queue for their first choice.
            wanted = ranked[:, :, rank % ranks]
            wanted = ops.where(waiting, wanted, experts)
            place = queue_positions(wanted, experts)
            place = place + ops.take_along_axis(taken, wanted, axis=1)
            settled = waiting
            if rank < ranks:
                settled = ops.logical_and(waiting, place < capacity)
            expert_index = ops.where(settled, wanted, expert_index)
            slot_index = ops.where(settled, place, slot_index)
            kept = ops.where(settled, wanted, experts)
            taken = taken + expert_sizes(kept, experts + 1)
            waiting = ops.logical_and(waiting, ops.logical_not(settled))
        gate = gather_probs(probs, ops.expand_dims(expert_index, -1))
        places = ops.arange(ops.shape(probs)[1], dtype="int32")
        token_index = ops.broadcast_to(places, ops.shape(expert_index))
        return RouterIndices(
            token_index, expert_index, slot_index, gate[:, :, 0]
        )

    def _first_choices(self, probs, routes):
        del routes
        return ops.cast(ops.argmax(probs, axis=-1), "int32")
