"""The state of callbacks as JSON and arrays."""

import math
from typing import Any

import keras
import numpy as np


def encode(value: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """Turns a value into what strict JSON can hold.

    Args:
        value: None, bool, int, float, str, anything array-like, and lists,
            tuples and dicts of them; keys are strings.
        arrays: Where arrays go; changed in place.
        name: What names of these arrays start with.

    Returns:
        What `decode` takes. A tuple comes back as a list, a tensor as a NumPy
        array.

    Raises:
        TypeError: for anything else.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (list, tuple)):
        return [
            encode(item, arrays, f"{name}/{i}") for i, item in enumerate(value)
        ]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {
            "dict": {
                key: encode(item, arrays, f"{name}/{key}")
                for key, item in value.items()
            }
        }
    if hasattr(value, "__array__") or keras.ops.is_tensor(value):
        array = np.array(keras.ops.convert_to_numpy(value))
        if array.dtype.kind in "biufcU":
            arrays[name] = array
            return {"array": name}
    raise TypeError(
        f"{name} must hold numbers, strings, arrays, lists and dicts of them "
        f"with strings as keys; received a {type(value).__name__}."
    )


def decode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """What `encode` was given.

    Args:
        value: What `encode` returned.
        arrays: The arrays by name.

    Returns:
        The value.
    """
    if isinstance(value, list):
        return [decode(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "float":
        return float(content)
    if kind == "array":
        return np.asarray(arrays[content])
    return {key: decode(item, arrays) for key, item in content.items()}
