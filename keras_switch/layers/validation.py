"""Checks of constructor arguments: what was wanted, what came."""

import math
from collections.abc import Sequence
from typing import Any


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
