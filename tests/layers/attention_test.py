import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers.attention import (
    MASKED,
    Attention,
    RelativePositionBias,
    segment_mask,
)

HEADS, WIDTH, HIDDEN = 2, 3, 8


def numpy_attention(layer, x, context=None, mask=None, bias=None):
    """The textbook, one query at a time."""
    context = x if context is None else context
    query, key, value, output = (
        ops.convert_to_numpy(dense.kernel).astype("float64")
        for dense in (layer.query, layer.key, layer.value, layer.output_dense)
    )
    result = np.zeros(x.shape)
    for b, t in np.ndindex(*x.shape[:2]):
        heads = []
        for n in range(HEADS):
            columns = slice(n * WIDTH, (n + 1) * WIDTH)
            q = x[b, t] @ query[:, columns]
            scores = context[b] @ key[:, columns] @ q
            if bias is not None:
                scores = scores + bias[0, n, t]
            if mask is not None:
                scores = np.where(mask[b, t], scores, MASKED)
            weights = np.exp(scores - scores.max())
            weights = weights / weights.sum()
            heads.append(weights @ (context[b] @ value[:, columns]))
        result[b, t] = np.concatenate(heads) @ output
    return result


@pytest.fixture
def layer():
    layer = Attention(HEADS, WIDTH, init_scale=4.0)
    layer.build((None, None, HIDDEN))
    return layer


def test_self_attention_is_the_textbook_without_scaling(layer, rng):
    x = rng.normal(size=(2, 5, HIDDEN)).astype("float32")
    y = ops.convert_to_numpy(layer(x))
    np.testing.assert_allclose(y, numpy_attention(layer, x), atol=1e-5)


def test_cross_attention_with_mask_and_bias(layer, rng):
    x = rng.normal(size=(2, 3, HIDDEN)).astype("float32")
    context = rng.normal(size=(2, 4, HIDDEN)).astype("float32")
    mask = rng.random((2, 3, 4)) < 0.6
    bias = rng.normal(size=(1, HEADS, 3, 4)).astype("float32")
    y = layer(x, context=context, attention_mask=mask, position_bias=bias)
    wanted = numpy_attention(layer, x, context, mask, bias)
    np.testing.assert_allclose(ops.convert_to_numpy(y), wanted, atol=1e-5)


def test_a_masked_key_has_no_influence_at_all(layer, rng):
    x = rng.normal(size=(1, 3, HIDDEN)).astype("float32")
    mask = np.array([[[1, 1, 0]] * 3])
    first = ops.convert_to_numpy(layer(x, attention_mask=mask))
    x[0, 2] = 1e3
    second = ops.convert_to_numpy(layer(x, attention_mask=mask))
    np.testing.assert_array_equal(first[:, :2], second[:, :2])


def test_a_query_that_sees_nothing_is_finite(layer, rng):
    x = rng.normal(size=(1, 3, HIDDEN)).astype("float32")
    y = layer(x, attention_mask=np.zeros((1, 3, 3), "int32"))
    assert np.isfinite(ops.convert_to_numpy(y)).all()


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16"])
def test_half_precision_with_mask_and_causal_bias_is_finite(dtype, rng):
    layer = Attention(HEADS, WIDTH, dtype=dtype)
    x = rng.normal(size=(1, 4, HIDDEN)).astype("float32")
    bias = RelativePositionBias(HEADS, bidirectional=False, dtype=dtype)(x)
    mask = np.array([[[1, 1, 0, 0]] * 4])
    y = layer(x, attention_mask=mask, position_bias=bias)
    assert np.isfinite(ops.convert_to_numpy(ops.cast(y, "float32"))).all()


def test_a_bias_is_not_rounded_to_half_precision():
    # 256 and 257 are the same number in bfloat16.
    layer = Attention(1, 1, dtype="mixed_bfloat16")
    layer.build((None, None, 2))
    for dense in (layer.query, layer.key):
        dense.kernel.assign([[0.0], [0.0]])
    layer.value.kernel.assign([[0.0], [1.0]])
    layer.output_dense.kernel.assign([[1.0, 1.0]])
    x = np.array([[[0.0, 0.0], [0.0, 1.0]]], "float32")
    bias = np.array([[[[256.0, 257.0]] * 2]], "float32")
    y = layer(x, position_bias=ops.convert_to_tensor(bias))
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-1)), rtol=1e-2)


def test_a_cache_filled_step_by_step_equals_one_pass(layer, rng):
    x = rng.normal(size=(2, 5, HIDDEN)).astype("float32")
    bias_layer = RelativePositionBias(HEADS, bidirectional=False)
    whole = ops.convert_to_numpy(layer(x, position_bias=bias_layer(x)))
    cache = tuple(ops.zeros((2, HEADS, 5, WIDTH)) for _ in range(2))
    for t in range(5):
        step = x[:, t : t + 1]
        bias = bias_layer(step, cache[0][:, 0], offset=t)
        y, cache = layer(
            step, position_bias=bias, cache=cache, cache_update_index=t
        )
        y = ops.convert_to_numpy(y)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-6)


def test_a_cross_cache_is_reused_without_the_context(layer, rng):
    x = rng.normal(size=(1, 1, HIDDEN)).astype("float32")
    context = rng.normal(size=(1, 4, HIDDEN)).astype("float32")
    empty = tuple(ops.zeros((1, HEADS, 4, WIDTH)) for _ in range(2))
    first, cache = layer(x, context=context, cache=empty, cache_update_index=0)
    second, _ = layer(x, cache=cache)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(first), ops.convert_to_numpy(second)
    )
    wanted = numpy_attention(layer, x, context)
    np.testing.assert_allclose(ops.convert_to_numpy(first), wanted, atol=1e-5)


def test_dropout_acts_on_the_weights_in_training_only(rng):
    layer = Attention(HEADS, WIDTH, dropout=0.5)
    x = rng.normal(size=(4, 9, HIDDEN)).astype("float32")
    calm = ops.convert_to_numpy(layer(x, training=False))
    again = ops.convert_to_numpy(layer(x))
    noisy = ops.convert_to_numpy(layer(x, training=True))
    np.testing.assert_array_equal(calm, again)
    assert np.abs(calm - noisy).max() > 1e-4


def test_kernels_are_two_dimensional_and_scaled_as_t5():
    layer = Attention(8, 64, init_scale=1.0)
    layer.build((None, None, 256))
    shapes = {w.path: tuple(w.shape) for w in layer.weights}
    assert {path.split("/", 1)[1]: shape for path, shape in shapes.items()} == {
        "query/kernel": (256, 512),
        "key/kernel": (256, 512),
        "value/kernel": (256, 512),
        "output/kernel": (512, 256),
    }
    # Truncation at two standard deviations leaves 0.88 of the spread.
    for dense, fan_in in (
        (layer.query, 256 * 64),
        (layer.key, 256),
        (layer.value, 256),
        (layer.output_dense, 512),
    ):
        spread = ops.convert_to_numpy(dense.kernel).std() * np.sqrt(fan_in)
        assert 0.86 < spread < 0.9


def test_symbolic_shapes(layer):
    x = keras.KerasTensor((None, None, HIDDEN))
    assert layer(x).shape == (None, None, HIDDEN)
    part = keras.KerasTensor((None, HEADS, None, WIDTH))
    cache = (part, part)
    y, next_cache = layer(x, cache=cache, cache_update_index=0)
    assert y.shape == x.shape
    assert [c.shape for c in next_cache] == [part.shape] * 2


def test_segments_see_themselves_only():
    queries, keys = np.array([[1, 2, 0]]), np.array([[1, 1, 2, 0]])
    mask = ops.convert_to_numpy(segment_mask(queries, keys))
    wanted = [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(mask, np.array([wanted], bool))


def position_bias(**arguments):
    """A layer with one head whose bias is the number of the bucket."""
    layer = RelativePositionBias(1, **arguments)
    layer.build((None, None, HIDDEN))
    layer.embeddings.assign(np.arange(layer.num_buckets)[:, None])
    return layer


def test_buckets_of_the_encoder_are_those_of_t5():
    bias = position_bias(num_buckets=32, max_distance=128)
    query = np.zeros((1, 1, 1), "float32")
    keys = np.zeros((1, 300, 1), "float32")
    row = ops.convert_to_numpy(bias(query, keys, offset=150))[0, 0, 0]
    left, right = row[150::-1], row[150:]
    assert list(left[:9]) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    # Widths double every two buckets: edges at 8 * 2 ** (j / 2).
    edges = {11: 8, 12: 9, 15: 9, 16: 10, 22: 10, 23: 11, 31: 11, 32: 12}
    edges |= {45: 12, 46: 13, 63: 13, 64: 14, 90: 14, 91: 15, 128: 15, 149: 15}
    assert {d: int(left[d]) for d in edges} == edges
    np.testing.assert_array_equal(right[1:], left[1:150] + 16)


def test_the_decoder_has_all_buckets_to_the_left_and_none_to_the_right():
    bias = position_bias(num_buckets=8, max_distance=16, bidirectional=False)
    rows = ops.convert_to_numpy(bias(np.zeros((1, 20, 1), "float32")))[0, 0]
    buckets = [0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 6, 6, *([7] * 8)]
    assert list(rows[19][::-1]) == buckets
    assert (rows[np.triu_indices(20, 1)] == MASKED).all()
    assert (rows[np.tril_indices(20)] >= 0).all()


def test_bias_of_one_query_is_a_row_of_the_whole():
    bias = RelativePositionBias(HEADS, 8, 16, bidirectional=False)
    x = np.zeros((1, 20, 1), "float32")
    whole = ops.convert_to_numpy(bias(x))
    row = ops.convert_to_numpy(bias(x[:, :1], x, offset=11))
    np.testing.assert_array_equal(row[:, :, 0], whole[:, :, 11])


def test_config_round_trips():
    layer = Attention(2, 3, dropout=0.1, init_scale=1.0, name="a")
    again = Attention.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    bias = RelativePositionBias(2, 8, 20, bidirectional=False, name="b")
    again = RelativePositionBias.from_config(bias.get_config())
    assert again.get_config() == bias.get_config()
    assert (again.num_buckets, again.max_distance) == (8, 20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads must be an int at least 1"),
        ({"key_value_dim": -1}, "key_value_dim must be an int at least 1"),
        ({"key_value_dim": 2.5}, "received key_value_dim=2.5"),
        ({"dropout": 1.0}, "dropout must be a number at least 0 and below 1"),
        ({"init_scale": 0}, "init_scale must be a number above 0"),
    ],
)
def test_arguments_of_attention_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        Attention(**{"num_heads": 2, "key_value_dim": 3, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_buckets": 30}, "num_buckets must be a multiple of 4"),
        (
            {"num_buckets": 31, "bidirectional": False},
            "num_buckets must be a multiple of 2",
        ),
        ({"num_buckets": 0}, "num_buckets must be an int at least 2"),
        ({"max_distance": 8}, "max_distance must be an int above 8"),
    ],
)
def test_arguments_of_the_bias_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        RelativePositionBias(2, **arguments)
