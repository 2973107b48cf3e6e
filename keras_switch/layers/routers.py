"""Routers beside `SwitchRouter`: top-k, and experts that choose."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routing import (
    Router,
    RouterIndices,
    SwitchRouter,
    gather_probs,
)
from keras_switch.layers.validation import check_choice, check_number

SECOND_POLICIES = ("all", "random", "threshold")


@keras.saving.register_keras_serializable(package="keras_switch")
class TopKRouter(Router):
    """Top-k router, with GShard's policies for choices after the first.

    A token wants its `k` most probable experts (the lowest index of tied
    ones); their gates are renormalised to sum to 1. All first choices take
    slots before any second one. With `k=1` there is nothing to renormalise
    against (a gate of 1 would leave the router without a gradient): the gate
    stays the probability, as in `SwitchRouter`.

    Args:
        k: int, at least 1, experts of a token.
        second_policy: what becomes of choices 2 to k, by their renormalised
            gate `g`: `"all"` are kept; `"threshold"` keeps `g` above
            `second_threshold`; `"random"` keeps with probability
            `min(1, g / second_threshold)` in training, and all in evaluation.
            The gates of the others stay as they were.
        second_threshold: float in `(0, 1]`, Mesh-TensorFlow's 0.2.
        **kwargs: as `Router`.

    Under a capacity, with `k` above 1, a later token's first choice may take
    the slot of an earlier token's second one. Without one (evaluation, by
    default) no token's output depends on later tokens.

    Capacity is that of the paper's equation 3, not multiplied by `k`: pass
    `capacity_factor=2.0` with `k=2` for GShard's.

    Reference: Lepikhin et al. 2021 (arXiv 2006.16668), section 2.2 and
    algorithm 1; Zoph et al. 2022 (arXiv 2202.08906), appendix G.
    """

    def __init__(
        self,
        num_experts: int | None = None,
        k: int = 2,
        second_policy: str = "random",
        second_threshold: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_experts, **kwargs)
        check_number("k", k, whole=True, at_least=1)
        if num_experts is not None and k > num_experts:
            raise ValueError(
                "k must be at most num_experts; received "
                f"k={k}, num_experts={num_experts}."
            )
        check_choice("second_policy", second_policy, SECOND_POLICIES)
        check_number("second_threshold", second_threshold, above=0)
        if second_threshold > 1:
            raise ValueError(
                "second_threshold must be at most 1; received "
                f"second_threshold={second_threshold}."
            )
        self.k = self.num_choices = k
        self.second_policy = second_policy
        self.second_threshold = second_threshold

    def choose(self, probs, scores, training=None):
        expert_index = self._best(scores)  # [G, S, K]
        gate = gather_probs(probs, expert_index)
        if self.k == 1:
            return expert_index, gate
        total = ops.sum(gate, axis=-1, keepdims=True)
        gate = gate / ops.maximum(total, 1e-30)
        kept = self._kept(gate, training)
        return ops.where(kept, expert_index, self.num_experts), gate

    def _best(self, scores):
        # k rounds of argmax, not top_k: torch's top_k breaks ties otherwise.
        experts = ops.arange(self.num_experts, dtype="int32")
        rounds = []
        for _ in range(self.k):
            best = ops.cast(ops.argmax(scores, axis=-1), "int32")
            best = ops.expand_dims(best, -1)  # [G, S, 1]
            rounds.append(best)
            scores = ops.where(experts == best, -1.0, scores)
        return ops.concatenate(rounds, axis=-1)

    def _kept(self, gate, training):
        first = ops.arange(self.k) == 0  # [K]
        if self.second_policy == "threshold":
            return ops.logical_or(first, gate > self.second_threshold)
        if self.second_policy == "random" and training:
            draw = keras.random.uniform(
                ops.shape(gate), dtype="float32", seed=self.seed_generator
            )
            kept = draw * self.second_threshold < gate
            return ops.logical_or(first, kept)
        return ops.ones_like(gate, dtype="bool")

    def get_config(self) -> dict:
        return super().get_config() | {
            "k": self.k,
            "second_policy": self.second_policy,
            "second_threshold": self.second_threshold,
        }


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

    Arguments as `Router`; `batch_prioritized` means nothing here.

    Reference: Zhou et al. 2022 (arXiv 2202.09368), section 3.2.
    """

    causal = False
    num_choices = None

    def __init__(
        self,
        num_experts: int | None = None,
        load_balancing_loss_weight: float = 0.0,
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

    def route(self, probs, scores, valid, capacity, quota, training):
        del training
        if capacity is None:
            raise ValueError(
                "capacity must be given to ExpertChoiceRouter: experts choose "
                "that many tokens; received capacity=None."
            )
        ranked = ops.where(ops.expand_dims(valid, -1), scores, -1.0)
        order = ops.argsort(-ops.transpose(ranked, (0, 2, 1)), axis=-1)
        token_index = ops.cast(order[:, :, :capacity], "int32")  # [G, E, C]
        by_expert = ops.transpose(probs, (0, 2, 1))
        gate = ops.take_along_axis(by_expert, token_index, axis=-1)
        slots = ops.arange(capacity, dtype="int32")
        taken = ops.sum(ops.cast(valid, "int32"), axis=-1)  # [G]
        taken = ops.minimum(taken, quota)
        within = slots < ops.reshape(taken, (-1, 1, 1))  # [G, 1, C]
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


ROUTERS = {
    "switch": SwitchRouter,
    "top_k": TopKRouter,
    "expert_choice": ExpertChoiceRouter,
}


def get_router(identifier: Any, num_experts: int, **kwargs: Any) -> Router:
    """A new router for `num_experts` experts.

    Args:
        identifier: `"switch"`, `"top_k"` or `"expert_choice"`; an unbuilt
            `Router`, of which a copy is made; or its serialized config.
        num_experts: int.
        **kwargs: `name`, `dtype` of the new router.

    Returns:
        A `Router`.

    Raises:
        ValueError: for an unknown name, a built router, or one made for
            another number of experts.
    """
    if isinstance(identifier, str):
        check_choice("router", identifier, tuple(ROUTERS))
        return ROUTERS[identifier](num_experts=num_experts, **kwargs)
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if not isinstance(identifier, Router):
        raise ValueError(
            "router must be one of 'switch', 'top_k', 'expert_choice', a "
            f"keras_switch.Router or its config; received {identifier!r}."
        )
    if identifier.built:
        raise ValueError(
            "router must not be built yet: each layer trains a copy of its "
            "own. Pass a new one."
        )
    if identifier.num_experts not in (None, num_experts):
        raise ValueError(
            f"router was made for num_experts={identifier.num_experts}; the "
            f"layer has num_experts={num_experts}. Leave it out of the router."
        )
    config = identifier.get_config() | {"num_experts": num_experts} | kwargs
    try:
        return type(identifier).from_config(config)
    except TypeError as error:
        # Keras wraps what the constructor says in a page of config.
        if isinstance(error.__context__, ValueError):
            raise error.__context__ from None
        raise
