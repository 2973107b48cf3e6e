"""Checks that several arguments share."""

import numbers
from typing import Any


def check_integer(name: str, value: Any, minimum: int) -> None:
    """Refuses everything but an integer of at least `minimum`.

    Args:
        name: the argument's name, for the message.
        value: its value.
        minimum: the least value allowed.

    Raises:
        ValueError: if the value is no integer or too small.
    """
    # A bool is an integer to Python, but never meant as one here.
    is_integer = isinstance(value, numbers.Integral) and value is not True
    if not is_integer or value < minimum:
        raise ValueError(
            f"{name} must be an integer of at least {minimum}; received "
            f"{value!r}."
        )
