"""What a router answers, and how it is put together."""

from typing import Any, NamedTuple

from keras import ops


class RouterIndices(NamedTuple):
    """Where each token goes: a list of edges, first choices first.

    Every field is `[G, M]`. An edge is dropped where `slot_index` is at least
    the capacity, so the routing before and after capacity can both be read.
    """

    token_index: Any  # int32, row of the group
    expert_index: Any  # int32, the expert wanted; num_experts = nowhere
    slot_index: Any  # int32, place in that expert's queue
    gate: Any  # float32, what the expert's output is multiplied by


class RouterMask(NamedTuple):
    """How much of each token is in each slot, and of each slot in each token.

    Both are float32 `[G, S, E, P]`, for `P` slots of an expert; 0 for tokens
    that take no part.
    """

    dispatch: Any  # sums to 1 over the tokens
    combine: Any  # sums to 1 over experts and slots


def gather_probs(probs: Any, expert_index: Any) -> Any:
    """The probability of each chosen expert.

    Args:
        probs: `[G, S, E]`.
        expert_index: int `[G, S, K]`; `E` for none.

    Returns:
        `[G, S, K]`; 0 for none.
    """
    # A masked sum: exact, and its gradient needs no scatter.
    experts = ops.arange(probs.shape[-1], dtype="int32")
    parts = [
        ops.sum(
            ops.where(
                ops.cast(expert_index[:, :, k : k + 1], "int32") == experts,
                probs,
                0.0,
            ),
            axis=-1,
        )
        for k in range(expert_index.shape[-1])
    ]
    return ops.stack(parts, axis=-1)


def best_experts(scores: Any, k: int) -> Any:
    """The `k` experts of highest score, the lowest index of tied ones first.

    Args:
        scores: finite float `[G, S, E]`.
        k: int, at most `E`.

    Returns:
        int32 `[G, S, K]`, best first.
    """
    # k rounds of argmax, not top_k: torch's top_k breaks ties otherwise.
    experts = ops.arange(scores.shape[-1], dtype="int32")
    rounds = []
    for _ in range(k):
        best = ops.cast(ops.argmax(scores, axis=-1), "int32")
        best = ops.expand_dims(best, -1)  # [G, S, 1]
        rounds.append(best)
        scores = ops.where(experts == best, -float("inf"), scores)
    return ops.concatenate(rounds, axis=-1)


def shares_of(gates: Any) -> Any:
    """Gates `[G, S, E]` of at least 0, made to sum to 1."""
    total = ops.sum(gates, axis=-1, keepdims=True)
    return gates / ops.maximum(total, 1e-30)


def choice_major(values: Any) -> Any:
    """All first choices, then all second ones: `[G, S, K]` -> `[G, K * S]`."""
    groups, tokens, choices = ops.shape(values)
    if choices == 1:
        return values[:, :, 0]
    values = ops.transpose(values, (0, 2, 1))
    return ops.reshape(values, (groups, choices * tokens))
