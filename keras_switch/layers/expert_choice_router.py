"""The router in which experts choose tokens."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import RouterIndices
from keras_switch.layers.routing import Router
from keras_switch.layers.validation import check_number
from keras_switch.ops.assignment import capped_choice


@keras.saving.register_keras_serializable(package="keras_switch")
class ExpertChoiceRouter(Router):
    """Router in which each expert chooses its tokens.

    Every expert takes the tokens of the group that give it the highest
    probability, as many as its quota `ceil(capacity_factor * tokens / E)`
    with padding not counted (`min_capacity` does not raise it); a token may
    have any number of experts, also none. Loads are equal by construction, so
    there is no load-balancing loss by default, and no dropless form: the
    capacity factor holds in evaluation too.

    A choice among all tokens of a sequence looks at later tokens, so this
    router cannot be used where generation goes left to right; `causal` is
    false, and a decoder refuses it.

    With `max_experts` no token has more experts than that: experts and tokens
    choose each other, as `ops.assignment.capped_choice` says. (The paper
    solves a linear program with an entropy term by 100 iterations, which need
    not end within the cap. This ends within it, exactly.) Where the cap is near
    the capacity factor, or below it, experts may find less than their quota.

    Args:
        num_experts: int, as `Router`.
        load_balancing_loss_weight: as `Router`, but 0 by default.
        max_experts: `None`, or int, at least 1; the paper tries 2 and 3.
        **kwargs: as `Router`; `batch_prioritized` means nothing here.

    Reference: Zhou et al. 2022 (arXiv 2202.09368), sections 3.2 and 3.3.
    """

    causal = False
    num_choices = None
    settings = (*Router.settings, "max_experts")

    def __init__(
        self,
        num_experts: int | None = None,
        load_balancing_loss_weight: float = 0.0,
        max_experts: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            num_experts,
            load_balancing_loss_weight=load_balancing_loss_weight,
            **kwargs,
        )
        if self.batch_prioritized:
            raise ValueError(
                "batch_prioritized must be False for ExpertChoiceRouter, which "
                "has no queue; received batch_prioritized=True."
            )
        if max_experts is not None:
            max_experts = check_number(
                "max_experts", max_experts, True, at_least=1
            )
        self.max_experts = max_experts

    def route(self, probs, scores, valid, capacity, quota, training):
        del training
        if capacity is None:
            raise ValueError(
                "capacity must be given to ExpertChoiceRouter: experts choose "
                "that many tokens; received capacity=None."
            )
        taken = ops.sum(ops.cast(valid, "int32"), axis=-1)  # [G]
        taken = ops.reshape(ops.minimum(taken, quota), (-1, 1, 1))
        ranked = ops.where(ops.expand_dims(valid, -1), scores, -1.0)
        if self.max_experts is not None:
            chosen = capped_choice(
                scores, valid, ops.reshape(taken, (-1,)), self.max_experts
            )
            ranked = ops.where(chosen, scores, -1.0)
            taken = ops.sum(ops.cast(chosen, "int32"), axis=1)  # [G, E]
            taken = ops.expand_dims(taken, -1)
        order = ops.argsort(-ops.transpose(ranked, (0, 2, 1)), axis=-1)
        token_index = ops.cast(order[:, :, :capacity], "int32")  # [G, E, C]
        by_expert = ops.transpose(probs, (0, 2, 1))
        gate = ops.take_along_axis(by_expert, token_index, axis=-1)
        slots = ops.arange(capacity, dtype="int32")
        within = slots < taken  # [G, 1 or E, C]
        experts = ops.arange(self.num_experts, dtype="int32")
        expert_index = ops.where(
            within, ops.reshape(experts, (1, -1, 1)), self.num_experts
        )
        slot_index = ops.broadcast_to(slots, ops.shape(token_index))
        fields = (token_index, expert_index, slot_index, gate)
        edges = (ops.shape(probs)[0], self.num_experts * capacity)
        return RouterIndices(*(ops.reshape(f, edges) for f in fields))

    def _first_choices(self, probs, routes):
        del routes
        return ops.cast(ops.argmax(probs, axis=-1), "int32")

    def _dropped_fraction(self, routes, capacity, valid):
        del capacity
        groups, tokens = ops.shape(valid)
        used = routes.expert_index < self.num_experts
        first = ops.expand_dims(ops.arange(groups, dtype="int32") * tokens, -1)
        flat = ops.reshape(routes.token_index + first, (-1, 1))
        chosen = ops.scatter_update(
            ops.zeros((groups * tokens,), "int32"),
            flat,
            ops.reshape(ops.cast(used, "int32"), (-1,)),
            reduction="add",
        )
        chosen = ops.reshape(chosen, (groups, tokens)) > 0
        lost = ops.logical_and(valid, ops.logical_not(chosen))
        count = ops.sum(ops.cast(valid, "float32"))
        lost = ops.sum(ops.cast(lost, "float32"))
        return lost / ops.maximum(count, 1.0)
