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
    optional: bool = False,
) -> Any:
    """Refuses anything but a finite number (or a whole number) in range; where
    it is optional, `None` is let through.

    Returns:
        The number: Python's own where a NumPy scalar came, which neither JSON
        nor a shape takes.

    Raises:
        ValueError: naming the argument, the range and what came.
    """
    if optional and value is None:
        return None
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
    return value


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


def check_flag(name: str, value: Any) -> None:
    """Refuses anything but `True` and `False`.

    Raises:
        ValueError: naming the argument and what came.
    """
    if not isinstance(value, bool):
        raise ValueError(
            f"{name} must be True or False; received {name}={value!r}."
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
        received = type(router).__name__
        if getattr(router, "batch_prioritized", False):
            received += "(batch_prioritized=True)"
        raise ValueError(
            f"{name} must be causal in a decoder: this looks at all tokens, so "
            "that what an earlier token gets depends on later ones, which "
            f'do not exist yet in generation. Pass {name}="switch"; received '
            f"{received}."
        )


def check_rank(shape: tuple) -> None:
    """Refuses anything but `[B, T, D]`.

    Raises:
        ValueError: with the shape.
    """
    if len(shape) != 3:
        raise ValueError(
            "x must be of rank 3, [batch, length, hidden]; received shape "
            f"{tuple(shape)}. A keras.layers.Reshape((-1, hidden)) before it "
            "makes a sequence of a row or an image."
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
    _check_like("padding_mask", padding_mask, x)
    if isinstance(padding_mask, keras.KerasTensor):
        return padding_mask
    return ops.cast(padding_mask, "bool")


def checked_ids(token_ids: Any, x: Any, router: str) -> Any:
    """The token ids of `x`, `[B, T, D]`, as int32 `[B, T]`.

    Raises:
        ValueError: where there are none, or of another shape.
    """
    if token_ids is None:
        raise ValueError(
            f"token_ids must be given to a layer with {router}, which looks "
            "tokens up; received None. SwitchBackbone hands them on; call a "
            "layer of your own with token_ids, int [batch, length]."
        )
    if isinstance(token_ids, keras.KerasTensor):
        _check_like("token_ids", token_ids, x)
        return token_ids
    token_ids = ops.convert_to_tensor(token_ids)
    _check_like("token_ids", token_ids, x)
    return ops.cast(token_ids, "int32")


def _check_like(name, value, x):
    """Refuses another shape than that of `x` without its last dimension."""
    given, wanted = tuple(value.shape), tuple(x.shape[:2])
    agree = len(given) == 2 and all(
        g == w or g is None or w is None
        for g, w in zip(given, wanted, strict=True)
    )
    if not agree:
        raise ValueError(
            f"{name} must have the shape of x without its last dimension,"
            f" {wanted}; received shape {given}."
        )
