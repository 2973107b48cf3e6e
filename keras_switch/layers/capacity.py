"""How many tokens an expert has room for."""

from fractions import Fraction
from typing import Any, NamedTuple

from keras import ops


class Capacity(NamedTuple):
    """The room of each expert in a group of tokens."""

    slots: Any  # int, a tensor if known at run time only; None: no limit
    quota: Any  # where experts choose: int32 [G], how many slots one fills


def slots_of(
    tokens: Any, num_experts: int, factor: float, at_least: int = 1
) -> Any:
    """The paper's equation 3: `ceil(factor * tokens / num_experts)`.

    Args:
        tokens: int or int tensor, tokens of a group.
        num_experts: int, experts that share them.
        factor: float above 0, the capacity factor, taken to the thousandth.
        at_least: int, the fewest slots.

    Returns:
        An int, or a tensor where `tokens` is one; never more than `tokens`.
    """
    # In whole numbers, so that a length known only at run time gives the same
    # capacity as one known now, and 1.1 * 20 / 2 is 11.
    ratio = Fraction(factor).limit_denominator(1000) / num_experts
    slots = -(-tokens * ratio.numerator // ratio.denominator)
    return smaller(larger(slots, at_least), tokens)


def smaller(a: Any, b: Any) -> Any:
    """The minimum, an int where both are."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return ops.minimum(a, b)


def larger(a: Any, b: Any) -> Any:
    """The maximum, an int where both are."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return ops.maximum(a, b)
