"""The auxiliary losses of a router. Each is a scalar in float32; padding, and
tokens without a finite route, take no part."""

from typing import Any

from keras import ops


def load_balancing_loss(
    probs: Any, expert_index: Any, padding_mask: Any = None
) -> Any:
    """Load-balancing loss of Switch Transformers.

    For each group `num_experts * sum_i f_i * P_i`, with `f_i` the fraction of
    tokens whose first choice is expert `i`, counted before any is dropped, and
    `P_i` the mean probability of expert `i`; then the mean over the groups
    that hold a token. 1 under uniform routing, `num_experts` where every token
    is surely routed to one expert. The gradient runs through `P` alone.

    Args:
        probs: float `[G, S, E]`, softmax of the router logits.
        expert_index: int `[G, S]`, the first choice of each token.
        padding_mask: optional `[G, S]`, nonzero for real tokens.

    Returns:
        float32 scalar in `[0, E]`; 0 where there is no token.

    Reference: Fedus et al. 2022 (arXiv 2101.03961), section 2.2, equations
    4 to 6.
    """
    probs = ops.cast(probs, "float32")
    num_experts = probs.shape[-1]
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.expand_dims(ops.cast(expert_index, "int32"), -1) == experts
    chosen = ops.cast(chosen, "float32")  # [G, S, E]
    mask = _real(probs, padding_mask)  # [G, S, 1]
    probs = ops.where(mask, probs, 0.0)  # not a product: 0 * NaN is NaN
    real = ops.cast(mask, "float32")
    count = ops.sum(real, axis=1)  # [G, 1]
    safe = ops.maximum(count, 1.0)
    fraction = ops.stop_gradient(ops.sum(chosen * real, axis=1) / safe)
    mean_prob = ops.sum(probs, axis=1) / safe  # [G, E]
    loss = num_experts * ops.sum(fraction * mean_prob, axis=-1)  # [G]
    held = ops.cast(count[:, 0] > 0, "float32")
    return ops.sum(loss * held) / ops.maximum(ops.sum(held), 1.0)


def router_z_loss(logits: Any, padding_mask: Any = None) -> Any:
    """Router z-loss of ST-MoE: the mean of `logsumexp(logits) ** 2`.

    Args:
        logits: float `[G, S, E]`, router logits (not probabilities).
        padding_mask: optional `[G, S]`, nonzero for real tokens.

    Returns:
        float32 scalar, at least 0; 0 where there is no token.

    Reference: Zoph et al. 2022 (arXiv 2202.08906), section 3, equation 5.
    """
    logits = ops.cast(logits, "float32")
    mask = _real(logits, padding_mask)  # [G, S, 1]
    logits = ops.where(mask, logits, 0.0)
    squares = ops.square(ops.logsumexp(logits, axis=-1))  # [G, S]
    real = ops.cast(mask[:, :, 0], "float32")
    return ops.sum(squares * real) / ops.maximum(ops.sum(real), 1.0)


def importance_loss(gate: Any, expert_index: Any, num_experts: int) -> Any:
    """Importance loss: the squared coefficient of variation of importance.

    An expert's importance is the sum of its gates over all groups; the loss
    is their population variance over their squared mean.

    Args:
        gate: float `[G, M]`, the gate of each edge, before capacity.
        expert_index: int `[G, M]`, its expert; `num_experts` for none.
        num_experts: int.

    Returns:
        float32 scalar in `[0, num_experts - 1]`; 0 where there is no edge.

    Reference: Shazeer et al. 2017 (arXiv 1701.06538), section 4.
    """
    gate = ops.cast(gate, "float32")
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.expand_dims(ops.cast(expert_index, "int32"), -1) == experts
    kept = ops.where(chosen, ops.expand_dims(gate, -1), 0.0)  # [G, M, E]
    return _squared_variation(ops.sum(kept, axis=(0, 1)))


def load_loss(
    clean_logits: Any,
    noisy_logits: Any,
    deviation: Any,
    k: int,
    padding_mask: Any = None,
) -> Any:
    """Load loss: the squared coefficient of variation of smooth loads.

    An expert's smooth load is the sum over tokens of the probability that it
    were among the token's `k` if its own noise were drawn again: `Phi((clean -
    threshold) / deviation)`, where the threshold is the `k`-th highest noisy
    logit of the others. Unlike a count of tokens it has a gradient.

    Args:
        clean_logits: float `[G, S, E]`, without noise.
        noisy_logits: float `[G, S, E]`, `clean_logits` plus `deviation` times
            what was drawn.
        deviation: float `[G, S, E]`, above 0, of the noise.
        k: int, below `E`, experts of a token.
        padding_mask: optional `[G, S]`, nonzero for real tokens.

    Returns:
        float32 scalar in `[0, num_experts - 1]`; 0 where there is no token.

    Reference: Shazeer et al. 2017 (arXiv 1701.06538), appendix A, equations
    8 to 11.
    """
    mask = _real(noisy_logits, padding_mask)  # [G, S, 1]
    clean, noisy, deviation = (
        ops.where(mask, ops.cast(values, "float32"), 1.0)
        for values in (clean_logits, noisy_logits, deviation)
    )
    ranked = ops.flip(ops.sort(noisy, axis=-1), axis=-1)
    last, next_one = ranked[:, :, k - 1 : k], ranked[:, :, k : k + 1]
    # Without one of the k, the next one is the k-th.
    threshold = ops.where(noisy > next_one, next_one, last)
    # Where softplus underflows there is no noise, and no gradient of it.
    z = (clean - threshold) / ops.maximum(deviation, 1e-6)
    chance = 0.5 * (1.0 + ops.erf(z * 0.5**0.5))
    chance = ops.where(mask, chance, 0.0)
    return _squared_variation(ops.sum(chance, axis=(0, 1)))


def _squared_variation(values: Any) -> Any:
    """Population variance over squared mean; 0 where the mean is."""
    mean = ops.mean(values)
    variance = ops.mean(ops.square(values - mean))
    safe = ops.where(mean > 0, mean, 1.0)
    return ops.where(mean > 0, variance / ops.square(safe), 0.0)


def _real(values: Any, padding_mask: Any) -> Any:
    """bool `[G, S, 1]`: whether a token counts."""
    if padding_mask is None:
        return ops.ones_like(values[:, :, :1], dtype="bool")
    return ops.expand_dims(ops.cast(padding_mask, "bool"), -1)
