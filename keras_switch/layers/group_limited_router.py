"""Experts of few devices: a token chooses groups first, then within them."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.loss_free_router import LossFreeRouter
from keras_switch.layers.routes import best_experts, gather_probs
from keras_switch.layers.validation import (
    check_choice,
    check_flag,
    check_number,
)

GROUP_SCORES = ("max", "top_2")


@keras.saving.register_keras_serializable(package="keras_switch")
class GroupLimitedRouter(LossFreeRouter):
    """Router of DeepSeek-V2 and V3: experts of at most so many groups.

    The experts are cut into `num_expert_groups` equal groups of neighbours,
    one for each device (or node) that holds them. A token goes to the `k` best
    experts of its `group_limit` best groups (the lowest index of tied ones),
    so that no more than `group_limit` devices need a copy of it. With
    `group_limit=num_expert_groups` it is `LossFreeRouter`.

    Experts are ranked by their gate plus the bias of loss-free balancing,
    which is learned as there; the gates are without it. The defaults are V3's
    but for the sizes, which there are `k=8`, 8 groups and a limit of 4 for 256
    experts. V2 has `gate="softmax", group_score="max", renormalize=False,
    update_rate=0.0` and balance losses, of which those of devices and of
    communication are not here, nor is either's constant factor of the gates.

    What a limit saves, `keras_switch.communication` counts.

    Args:
        num_experts: int, as `Router`; a multiple of `num_expert_groups`.
        k: int, at least 1, experts of a token; at most those of `group_limit`
            groups.
        num_expert_groups: int, at least 1.
        group_limit: int, at least 1, groups of a token; at most
            `num_expert_groups`.
        group_score: what groups are ranked by: `"top_2"`, the sum of their two
            best experts, or `"max"`, their best.
        renormalize: bool, whether a token's gates are divided by their sum.
        **kwargs: as `LossFreeRouter`.

    Reference: DeepSeek-AI 2024 (arXiv 2405.04434, section 2.2.2; arXiv
    2412.19437, section 2.1.2).
    """

    settings = (
        *LossFreeRouter.settings,
        "num_expert_groups",
        "group_limit",
        "group_score",
        "renormalize",
    )

    def __init__(
        self,
        num_experts: int | None = None,
        k: int = 2,
        num_expert_groups: int = 4,
        group_limit: int = 2,
        group_score: str = "top_2",
        renormalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_experts, k=k, **kwargs)
        name = "num_expert_groups"
        check_number(name, num_expert_groups, whole=True, at_least=1)
        group_limit = check_number(
            "group_limit", group_limit, whole=True, at_least=1
        )
        check_choice("group_score", group_score, GROUP_SCORES)
        check_flag("renormalize", renormalize)
        _check_groups(num_experts, k, num_expert_groups, group_limit)
        self.num_expert_groups = num_expert_groups
        self.group_limit = group_limit
        self.group_score = group_score
        self.renormalize = renormalize

    def choose(self, probs, scores, training=None):
        del training
        allowed = self._allowed(scores)  # [G, S, E]
        scores = ops.where(allowed, scores, -float("inf"))
        expert_index = best_experts(scores, self.k)  # [G, S, K]
        gate = gather_probs(probs, expert_index)
        if not self.renormalize:
            return expert_index, gate
        total = ops.sum(gate, axis=-1, keepdims=True)
        return expert_index, gate / ops.maximum(total, 1e-30)

    def _allowed(self, scores):
        """Whether an expert is in one of the token's groups."""
        groups = self.num_expert_groups
        size = self.num_experts // groups
        shape = ops.shape(scores)
        scores = ops.reshape(scores, (*shape[:2], groups, size))
        best = ops.max(scores, axis=-1)  # [G, S, N]
        if self.group_score == "top_2" and size > 1:
            # Not top_k, for which XLA gathers the scores of a whole mesh.
            first = best_experts(scores, 1)  # [G, S, N, 1]
            others = ops.where(
                ops.arange(size, dtype="int32") == first, -float("inf"), scores
            )
            best = best + ops.max(others, axis=-1)
        chosen = ops.expand_dims(best_experts(best, self.group_limit), -1)
        allowed = ops.any(
            chosen == ops.arange(groups, dtype="int32"), axis=-2
        )  # [G, S, N]
        return ops.repeat(allowed, size, axis=-1)


def _check_groups(num_experts, k, groups, limit):
    if limit > groups:
        raise ValueError(
            "group_limit must be at most num_expert_groups; received "
            f"group_limit={limit}, num_expert_groups={groups}."
        )
    if num_experts is None:
        return
    if num_experts % groups:
        raise ValueError(
            "num_experts must be a multiple of num_expert_groups; received "
            f"num_experts={num_experts}, num_expert_groups={groups}."
        )
    room = limit * (num_experts // groups)
    if k > room:
        raise ValueError(
            f"k must be at most {room}, the experts of group_limit groups; "
            f"received k={k}, group_limit={limit}, num_experts={num_experts}, "
            f"num_expert_groups={groups}."
        )
