"""Rotary positions, against complex numbers."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers.rotary import check_rotary, rotate


def test_pairs_are_complex_numbers_times_a_phase(rng):
    x = rng.normal(size=(2, 5, 3, 8)).astype("float32")
    y = ops.convert_to_numpy(rotate(ops.convert_to_tensor(x), 3, 100.0))
    pairs = x[..., :4] + 1j * x[..., 4:]
    speeds = 100.0 ** (-np.arange(4) / 4)
    places = np.arange(3, 8)
    phases = np.exp(1j * places[:, None] * speeds)[None, :, None, :]
    wanted = pairs * phases
    np.testing.assert_allclose(y[..., :4], wanted.real, atol=1e-5)
    np.testing.assert_allclose(y[..., 4:], wanted.imag, atol=1e-5)


def test_a_score_depends_on_the_distance_alone(rng):
    query, key = rng.normal(size=(2, 1, 1, 1, 8)).astype("float32")

    def score(first, second):
        q = ops.convert_to_numpy(rotate(query, first, 10000.0))
        k = ops.convert_to_numpy(rotate(key, second, 10000.0))
        return (q * k).sum()

    np.testing.assert_allclose(score(7, 4), score(103, 100), atol=1e-4)
    assert abs(score(7, 4) - score(7, 5)) > 1e-3


def test_angles_are_float32_under_half_precision():
    x = np.ones((1, 1, 1, 2), "float16")
    y = rotate(ops.convert_to_tensor(x), 4097, 10000.0)
    wanted = np.cos(4097.0) - np.sin(4097.0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(y)[0, 0, 0, 0], wanted, 2e-3
    )


def test_what_cannot_be_turned():
    with pytest.raises(ValueError, match="key_value_dim must be even"):
        check_rotary(10000.0, 3)
    with pytest.raises(ValueError, match="rotary_max_wavelength must be"):
        check_rotary(1, 4)
