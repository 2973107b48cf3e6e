"""Balanced assignment: each expert gets equally many tokens.

The plain form of it is the linear assignment problem; an auction solves it
with static shapes, all tokens that have no place bidding at once.
"""

from typing import Any

from keras import ops

from keras_switch.ops.indexing import expert_sizes, queue_positions

# Of the soft choices that give the first prices: their width, over the range
# of scores, and how often the prices are mended.
_SOFTNESS, _ITERATIONS = 0.02, 30
_UNPLACED = -float("inf")


def balanced_assignment(
    scores: Any,
    valid: Any,
    precision: float = 3e-3,
    max_rounds: int = 100,
) -> Any:
    """Assigns tokens to experts, equally many to each, for a high total score.

    In a round every token without a place bids for the expert that is worth
    most to it, its score less the expert's price: as much more as it is worth
    than the second best, and a little. An expert keeps the highest bids up to
    its quota, and its price is the lowest that it kept. Each token then has
    what is best for it at these prices but for that little, so that the total
    is within `tokens * precision * range of scores` of the best. Tokens that
    have no place after `max_rounds` take those that are left, in order: the
    balance is exact in any case.

    Of `n` tokens an expert gets `n // E` of them; the first `n % E` experts
    one more.

    Args:
        scores: finite float32 `[G, S, E]`.
        valid: bool `[G, S]`, the tokens that take part.
        precision: float above 0, how much more than needed a bid is, over the
            range of the group's scores.
        max_rounds: int, the most rounds.

    Returns:
        int32 `[G, S]`; `E` for tokens that take no part. It has no gradient.

    Reference: Bertsekas 1992, Auction algorithms for network flow problems,
    section 4; Lewis et al. 2021, BASE Layers (arXiv 2103.16716), section 3.
    """
    scores = ops.stop_gradient(scores)
    experts = scores.shape[-1]
    quota = _quotas(valid, experts)  # [G, E]
    mask = ops.expand_dims(valid, -1)
    high = ops.max(ops.where(mask, scores, _UNPLACED), axis=(1, 2))
    low = ops.min(ops.where(mask, scores, -_UNPLACED), axis=(1, 2))
    spread = ops.where(high > low, high - low, 1.0)  # [G]
    least = ops.reshape(precision * spread, (-1, 1, 1))
    nowhere = ops.full_like(ops.cast(valid, "int32"), experts)

    def goes_on(rounds, expert_index, bid, price):
        del bid, price
        waiting = ops.logical_and(valid, expert_index == experts)
        return ops.logical_and(rounds < max_rounds, ops.any(waiting))

    def bid_once(rounds, expert_index, bid, price):
        waiting = ops.logical_and(valid, expert_index == experts)
        best, offer = _offers(scores, price, quota, least)
        expert_index = ops.where(waiting, best, expert_index)
        bid = ops.where(waiting, offer, bid)
        kept = _highest(expert_index, bid, quota)
        price = _prices(expert_index, bid, kept, quota, price)
        expert_index = ops.where(kept, expert_index, experts)
        return rounds + 1, expert_index, bid, price

    _, expert_index, _, _ = ops.while_loop(
        goes_on,
        bid_once,
        (
            ops.zeros((), "int32"),
            nowhere,
            ops.zeros_like(scores[:, :, 0]),
            _first_prices(scores, mask, quota, spread),
        ),
    )
    return _fill(expert_index, valid, quota)


def _quotas(valid, experts):
    """int32 `[G, E]`: what is to be shared out, evenly."""
    count = ops.sum(ops.cast(valid, "int32"), axis=-1, keepdims=True)
    ids = ops.arange(experts, dtype="int32")
    return count // experts + ops.cast(ids < count % experts, "int32")


def _first_prices(scores, mask, quota, spread):
    """Prices at which about as many tokens as its quota want each expert.

    Sinkhorn's iterations, for soft choices: from here an auction has little
    left to do. Any prices are right ones to start from.
    """
    if scores.shape[-1] == 1:  # and Keras warns of a softmax over one
        return ops.zeros_like(scores[:, 0])
    width = ops.reshape(spread * _SOFTNESS, (-1, 1, 1))
    wanted = ops.maximum(ops.cast(quota, "float32"), 1e-3)

    def change(_, price):
        worth = (scores - ops.expand_dims(price, 1)) / width
        share = ops.where(mask, ops.softmax(worth, axis=-1), 0.0)
        load = ops.maximum(ops.sum(share, axis=1), 1e-3)  # [G, E]
        return price + width[:, 0] * ops.log(load / wanted)

    return ops.fori_loop(0, _ITERATIONS, change, ops.zeros_like(scores[:, 0]))


def _offers(scores, price, quota, least):
    """The expert each token wants most, and what it offers: `[G, S]` both."""
    worth = scores - ops.expand_dims(price, 1)
    # An expert without a place to give is worth nothing to anyone.
    open_to = ops.expand_dims(quota > 0, 1)
    worth = ops.where(open_to, worth, -1e30)
    best = ops.cast(ops.argmax(worth, axis=-1), "int32")
    ids = ops.arange(scores.shape[-1], dtype="int32")
    is_best = ops.expand_dims(best, -1) == ids
    second = ops.max(ops.where(is_best, -1e30, worth), axis=-1, keepdims=True)
    # All it is worth above the second best; with one expert that is nothing.
    second = ops.maximum(second, ops.min(worth, axis=-1, keepdims=True))
    offer = scores - second + least
    return best, ops.sum(ops.where(is_best, offer, 0.0), axis=-1)


def _highest(expert_index, bid, quota):
    """bool `[G, S]`: which tokens hold one of their expert's places."""
    experts = quota.shape[-1]
    order = ops.cast(ops.argsort(-bid, axis=-1), "int32")
    inverse = ops.cast(ops.argsort(order, axis=-1), "int32")
    ranked = ops.take_along_axis(expert_index, order, axis=1)
    place = queue_positions(ranked, experts)
    place = ops.take_along_axis(place, inverse, axis=1)
    mine = ops.minimum(expert_index, experts - 1)
    room = ops.take_along_axis(quota, mine, axis=1)
    return ops.logical_and(expert_index < experts, place < room)


def _prices(expert_index, bid, kept, quota, price):
    """The lowest bid kept, where all places are taken: `[G, E]`."""
    ids = ops.arange(quota.shape[-1], dtype="int32")
    mine = ops.expand_dims(expert_index, -1) == ids  # [G, S, E]
    mine = ops.logical_and(mine, ops.expand_dims(kept, -1))
    lowest = ops.where(mine, ops.expand_dims(bid, -1), -_UNPLACED)
    full = ops.sum(ops.cast(mine, "int32"), axis=1) >= quota
    full = ops.logical_and(full, quota > 0)
    return ops.where(full, ops.min(lowest, axis=1), price)


def _fill(expert_index, valid, quota):
    """Puts tokens without a place where there are places left, in order."""
    experts = quota.shape[-1]
    left = quota - expert_sizes(expert_index, experts + 1)[:, :experts]
    ends = ops.expand_dims(ops.cumsum(left, axis=-1), 1)  # [G, 1, E]
    waiting = ops.logical_and(valid, expert_index == experts)
    place = ops.cumsum(ops.cast(waiting, "int32"), axis=-1) - 1
    after = ops.cast(ops.expand_dims(place, -1) >= ends, "int32")
    found = ops.sum(after, axis=-1)  # experts that are full before
    return ops.where(waiting, found, expert_index)


def capped_choice(
    scores: Any, valid: Any, quota: Any, cap: int, max_rounds: int = 100
) -> Any:
    """Experts choose tokens, and no token is chosen by more than `cap`.

    Deferred acceptance: in a round every expert asks the tokens it likes most,
    as many as its quota, of those that have not turned it down; a token keeps
    the `cap` experts that like it most, and turns down the others for good.
    What comes of it is what the greedy choice gives that goes through all
    pairs by descending score. Both limits hold after any round; where rounds
    run out, experts are left with less than their quota.

    Args:
        scores: float32 `[G, S, E]`, above -1.
        valid: bool `[G, S]`, the tokens that take part.
        quota: int32 `[G]`, tokens of an expert.
        cap: int, at least 1, experts of a token.
        max_rounds: int, the most rounds.

    Returns:
        bool `[G, S, E]`; it has no gradient.

    Reference: Gale and Shapley 1962, College admissions and the stability of
    marriage.
    """
    scores = ops.stop_gradient(scores)
    quota = ops.reshape(quota, (-1, 1, 1))
    unasked = ops.broadcast_to(ops.expand_dims(valid, -1), ops.shape(scores))

    def answers(may_ask):
        liked = ops.where(may_ask, scores, -1.0)
        asked = ops.logical_and(may_ask, _rank(liked, 1) < quota)
        liked = ops.where(asked, scores, -1.0)
        return asked, ops.logical_and(asked, _rank(liked, -1) < cap)

    def goes_on(rounds, may_ask, asked, kept):
        del may_ask
        refused = ops.any(ops.logical_xor(asked, kept))
        return ops.logical_and(rounds < max_rounds, refused)

    def ask(rounds, may_ask, asked, kept):
        refused = ops.logical_and(asked, ops.logical_not(kept))
        may_ask = ops.logical_and(may_ask, ops.logical_not(refused))
        return rounds + 1, may_ask, *answers(may_ask)

    start = (ops.ones((), "int32"), unasked, *answers(unasked))
    return ops.while_loop(goes_on, ask, start)[-1]


def _rank(values, axis):
    """Places in descending order along an axis; ties by index."""
    order = ops.argsort(-values, axis=axis)
    return ops.cast(ops.argsort(order, axis=axis), "int32")
