"""Checks of arguments: what was wanted, what came."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


def check_number(
    name: str,
    value: Any,
    whole: bool = False,
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Refuses anything but a finite number (or a whole number) in range.

    Raises:
        ValueError: naming the argument, the range and what came.
    """
    kinds = (int,) if whole else (int, float)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()  # NumPy scalars
    right = isinstance(value, kinds) and not isinstance(value, bool)
    if (
        not right
        or not math.isfinite(value)
        or (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        bounds = [
            f"{word} {bound}"
            for word, bound in (
                ("at least", at_least),
                ("above", above),
                ("below", below),
            )
            if bound is not None
        ]
        kind = "an int" if whole else "a number"
        wanted = " ".join([kind, " and ".join(bounds)]).strip()
        raise ValueError(f"{name} must be {wanted}; received {name}={value!r}.")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuses anything but one of the choices.

    Raises:
        ValueError: naming the argument, the choices and what came.
    """
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(
            f"{name} must be one of {listed}; received {name}={value!r}."
        )


def check_causal(name: str, router: Any) -> None:
    """Refuses a router that a decoder cannot have.

    Args:
        name: the argument that it came by.
        router: a `Router`, or anything without an attribute `causal`.

    Raises:
        ValueError: with the reason.
    """
    if not getattr(router, "causal", True):
        raise ValueError(
            f"{name} must be causal in a decoder: where experts choose tokens, "
            "an earlier token's expert depends on later tokens, which do not "
            f'exist yet in generation. Pass {name}="switch"; received '
            f"{type(router).__name__}."
        )


def check_rank(shape: tuple) -> None:
    """Refuses anything but `[B, T, D]`.

    Raises:
        ValueError: with the shape.
    """
    if len(shape) != 3:
        raise ValueError(
            "x must be of rank 3, [batch, length, hidden]; received shape "
            f"{tuple(shape)}."
        )


def checked_mask(padding_mask: Any, x: Any) -> Any:
    """The padding mask of `x`, `[B, T, D]`, as bool `[B, T]`.

    All true where none is given; `None` for a symbolic `x`.

    Raises:
        ValueError: for a mask of another shape.
    """
    if padding_mask is None:
        if isinstance(x, keras.KerasTensor):
            return None
        return ops.ones(ops.shape(x)[:2], dtype="bool")
    if not isinstance(padding_mask, keras.KerasTensor):
        padding_mask = ops.convert_to_tensor(padding_mask)
    given, wanted = tuple(padding_mask.shape), tuple(x.shape[:2])
    agree = len(given) == 2 and all(
        g == w or g is None or w is None
        for g, w in zip(given, wanted, strict=True)
    )
    if not agree:
        raise ValueError(
            "padding_mask must have the shape of x without its last dimension,"
            f" {wanted}; received shape {given}."
        )
    if isinstance(padding_mask, keras.KerasTensor):
        return padding_mask
    return ops.cast(padding_mask, "bool")
