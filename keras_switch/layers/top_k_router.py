"""The top-k router, with GShard's policies for choices after the first."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.routes import best_experts, gather_probs
from keras_switch.layers.routing import Router
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

    settings = (*Router.settings, "k", "second_policy", "second_threshold")

    def __init__(
        self,
        num_experts: int | None = None,
        k: int = 2,
        second_policy: str = "random",
        second_threshold: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_experts, **kwargs)
        k = check_number("k", k, whole=True, at_least=1)
        if num_experts is not None and k > num_experts:
            raise ValueError(
                "k must be at most num_experts; received "
                f"k={k}, num_experts={num_experts}."
            )
        check_choice("second_policy", second_policy, SECOND_POLICIES)
        second_threshold = check_number(
            "second_threshold", second_threshold, above=0
        )
        if second_threshold > 1:
            raise ValueError(
                "second_threshold must be at most 1; received "
                f"second_threshold={second_threshold}."
            )
        self.k = self.num_choices = k
        self.second_policy = second_policy
        self.second_threshold = second_threshold

    def choose(self, probs, scores, training=None):
        expert_index = best_experts(scores, self.k)  # [G, S, K]
        gate = gather_probs(probs, expert_index)
        if self.k == 1:
            return expert_index, gate
        total = ops.sum(gate, axis=-1, keepdims=True)
        gate = gate / ops.maximum(total, 1e-30)
        kept = self._kept(gate, training)
        return ops.where(kept, expert_index, self.num_experts), gate

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
