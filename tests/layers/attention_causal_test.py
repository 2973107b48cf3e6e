"""What decoder-only models ask of attention, against the textbook."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers.attention import Attention

N, K, H, D = 4, 2, 6, 8


def make(**arguments):
    layer = Attention(N, H, scaled=True, **arguments)
    layer.build((None, None, D))
    rng = np.random.default_rng(2)
    for variable in layer.trainable_variables:
        variable.assign(rng.normal(size=variable.shape).astype("float32"))
    return layer


def weight(dense, name):
    return ops.convert_to_numpy(getattr(dense, name)).astype("float64")


def project(dense, x):
    y = x @ weight(dense, "kernel")
    return y + weight(dense, "bias") if dense.use_bias else y


def turned(x, wavelength):
    if wavelength is None:
        return x
    pairs = x[..., : H // 2] + 1j * x[..., H // 2 :]
    speeds = wavelength ** (-2 * np.arange(H // 2) / H)
    phases = np.exp(1j * np.arange(x.shape[1])[:, None, None] * speeds)
    pairs = pairs * phases
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def textbook(layer, x, mask):
    """Every head on its own, with the head of keys that is its."""
    wavelength = layer.rotary_max_wavelength
    shared = layer.num_key_value_heads
    batch, length, _ = x.shape
    query = project(layer.query, x).reshape(batch, length, N, H)
    key = project(layer.key, x).reshape(batch, length, shared, H)
    value = project(layer.value, x).reshape(batch, length, shared, H)
    query, key = turned(query, wavelength), turned(key, wavelength)
    heads = []
    for n in range(N):
        k = n // (N // shared)
        scores = np.einsum("bth,bsh->bts", query[:, :, n], key[:, :, k])
        scores = np.where(mask, scores / np.sqrt(H), -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        heads.append(weights @ value[:, :, k])
    return project(layer.output_dense, np.concatenate(heads, axis=-1))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_key_value_heads": K},
        {"num_key_value_heads": 1, "use_bias": True},
        {"rotary_max_wavelength": 100.0},
        {"num_key_value_heads": K, "rotary_max_wavelength": 100.0},
    ],
)
def test_it_is_the_textbook(arguments, rng):
    layer = make(**arguments)
    x = rng.normal(size=(2, 5, D)).astype("float32")
    mask = np.tril(np.ones((2, 5, 5), bool))
    y = ops.convert_to_numpy(layer(x, attention_mask=mask))
    np.testing.assert_allclose(y, textbook(layer, x, mask), atol=1e-4)


def test_steps_with_a_cache_equal_one_pass(rng):
    layer = make(num_key_value_heads=K, rotary_max_wavelength=100.0)
    x = rng.normal(size=(2, 5, D)).astype("float32")
    causal = np.tril(np.ones((2, 5, 5), bool))
    whole = ops.convert_to_numpy(layer(x, attention_mask=causal))
    cache = tuple(ops.zeros((2, K, 5, H)) for _ in range(2))
    y, cache = layer(
        x[:, :2],
        attention_mask=causal[:, :2],
        cache=cache,
        cache_update_index=0,
    )
    steps = [ops.convert_to_numpy(y)]
    for t in range(2, 5):
        y, cache = layer(
            x[:, t : t + 1],
            attention_mask=causal[:, t : t + 1],
            cache=cache,
            cache_update_index=t,
        )
        steps.append(ops.convert_to_numpy(y))
    assert cache[0].shape == (2, K, 5, H)
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, atol=1e-5)


def test_the_query_kernel_carries_no_scale_where_scores_are_scaled():
    layer = Attention(64, 16, scaled=True, init_scale=1.0)
    layer.build((None, None, 64))
    for dense in (layer.query, layer.key):
        spread = weight(dense, "kernel").std()
        # A normal cut off at two deviations has 0.88 of the deviation.
        np.testing.assert_allclose(spread, 0.88 / 8, rtol=0.05)


def test_arguments():
    with pytest.raises(ValueError, match="multiple of num_key_value_heads"):
        Attention(4, 6, num_key_value_heads=3)
    with pytest.raises(ValueError, match="key_value_dim must be even"):
        Attention(4, 5, rotary_max_wavelength=10.0)


def test_config_round_trip():
    layer = make(num_key_value_heads=K, use_bias=True)
    again = Attention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.num_key_value_heads, again.use_bias) == (K, True)
