import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers.normalization import (
    LayerNorm,
    RMSNorm,
    make_norm,
)


def test_it_divides_by_the_root_mean_square():
    norm = RMSNorm(epsilon=1e-6)
    x = np.array([[[3.0, 4.0], [0.0, 0.0]]], "float32")
    norm.build(x.shape)
    norm.scale.assign([1.0, 2.0])
    y = ops.convert_to_numpy(norm(x))
    root = np.sqrt(12.5 + 1e-6)
    np.testing.assert_allclose(
        y, [[[3 / root, 8 / root], [0, 0]]], rtol=1e-6, atol=1e-7
    )


def test_the_mean_is_not_taken_off():
    y = RMSNorm()(np.full((1, 1, 4), 7.0, "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(y), 1.0, rtol=1e-6)


def test_float16_squares_do_not_overflow():
    norm = RMSNorm(dtype="float16")
    x = ops.cast(np.array([[[30000.0, -30000.0]]]), "float16")
    y = norm(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, [[[1.0, -1.0]]], rtol=1e-3)


def test_statistics_are_float32_in_a_bfloat16_model():
    # A mean of bfloat16 squares is off by up to 2 ** -8; the output's own
    # rounding is 2 ** -9.
    x = np.random.default_rng(0).normal(size=(8, 1, 999)).astype("float32")
    x = ops.convert_to_numpy(ops.cast(ops.cast(x, "bfloat16"), "float32"))
    y = ops.cast(RMSNorm(dtype="mixed_bfloat16")(x), "float32")
    wanted = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ops.convert_to_numpy(y), wanted, rtol=2**-8)


def test_config_round_trip():
    norm = RMSNorm(epsilon=1e-3, name="norm")
    again = RMSNorm.from_config(norm.get_config())
    assert again.epsilon == 1e-3
    assert again.name == "norm"


@pytest.mark.parametrize("epsilon", [0, -1e-6, "small"])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        RMSNorm(epsilon=epsilon)


def test_layer_norm_takes_off_the_mean_and_divides_by_the_deviation():
    norm = LayerNorm(epsilon=1e-5)
    x = np.array([[[3.0, 5.0], [7.0, 7.0]]], "float32")
    norm.build(x.shape)
    norm.scale.assign([1.0, 2.0])
    norm.bias.assign([0.5, -0.5])
    y = ops.convert_to_numpy(norm(x))
    unit = 1 / np.sqrt(1 + 1e-5)
    wanted = [[[0.5 - unit, 2 * unit - 0.5], [0.5, -0.5]]]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_layer_norm_in_float16_does_not_overflow():
    x = ops.cast(np.array([[[30000.0, -30000.0]]]), "float16")
    y = LayerNorm(dtype="float16")(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, [[[1.0, -1.0]]], rtol=1e-3)


def test_make_norm():
    assert type(make_norm("rms", 1e-3, name="a")) is RMSNorm
    assert make_norm("layer", 1e-3, name="a").get_config()["epsilon"] == 1e-3
    with pytest.raises(ValueError, match="norm must be one of"):
        make_norm("batch", 1e-3)
