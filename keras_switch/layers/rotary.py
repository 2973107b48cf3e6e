"""Rotary positions: queries and keys turned by where they stand."""

from typing import Any

import numpy as np
from keras import ops

from keras_switch.layers.validation import check_number


def rotate(x: Any, first: Any, max_wavelength: float) -> Any:
    """Turns pairs of numbers of each head by angles that grow with position.

    The scalar product of a turned query and a turned key depends on the
    distance between them, not on where they stand. Number `i` of a head is
    paired with number `i + H / 2`, as in `transformers`. Angles are float32
    whatever the dtype of `x`.

    Args:
        x: `[B, T, N, H]`, `H` even.
        first: int, position of the first row.
        max_wavelength: float; pair `i` turns by
            `max_wavelength ** (-2 i / H)` for each position.

    Returns:
        `[B, T, N, H]`, in the dtype of `x`.

    Reference: Su et al. 2021 (arXiv 2104.09864), section 3.2.
    """
    half = x.shape[-1] // 2
    speeds = float(max_wavelength) ** (-np.arange(half) / half)
    positions = ops.arange(ops.shape(x)[1], dtype="int32") + first  # [T]
    positions = ops.expand_dims(ops.cast(positions, "float32"), -1)
    speeds = ops.convert_to_tensor(speeds, "float32")
    angles = ops.reshape(positions * speeds, (1, -1, 1, half))
    cos, sin = ops.cos(angles), ops.sin(angles)
    wide = ops.cast(x, "float32")
    left, right = wide[..., :half], wide[..., half:]
    turned = ops.concatenate(
        [left * cos - right * sin, right * cos + left * sin], axis=-1
    )
    return ops.cast(turned, x.dtype)


def check_rotary(max_wavelength: float, width: int) -> None:
    """Refuses what `rotate` cannot turn.

    Args:
        max_wavelength: As for `rotate`.
        width: Width of a head, `H`.

    Raises:
        ValueError: naming the argument.
    """
    check_number("rotary_max_wavelength", max_wavelength, above=1)
    if width % 2:
        raise ValueError(
            "key_value_dim must be even with rotary positions, which turn "
            f"pairs; received key_value_dim={width}."
        )
