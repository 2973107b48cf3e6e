import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers.attention import RelativePositionBias
from keras_switch.layers.feed_forward import FeedForward
from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.layers.transformer_layer import TransformerLayer

HIDDEN = 8


def dense(**arguments):
    feed_forward = FeedForward(16, init_scale=1.0, name="feed_forward")
    return TransformerLayer(feed_forward, 2, 3, init_scale=4.0, **arguments)


def sparse(**arguments):
    feed_forward = SwitchLayer(4, 16, name="feed_forward")
    return TransformerLayer(feed_forward, 2, 3, **arguments)


@pytest.fixture
def x(rng):
    return rng.normal(size=(2, 5, HIDDEN)).astype("float32")


def test_it_is_the_sum_of_its_branches(x, rng):
    layer = dense(cross_attention=True)
    encoder_output = rng.normal(size=(2, 3, HIDDEN)).astype("float32")
    y = layer(x, encoder_output=encoder_output)
    x = ops.convert_to_tensor(x)
    z = x + layer.self_attention(layer.self_attention_norm(x))
    z = z + layer.cross_attention_layer(
        layer.cross_attention_norm(z), context=encoder_output
    )
    z = z + layer.feed_forward(layer.feed_forward_norm(z))
    np.testing.assert_allclose(
        ops.convert_to_numpy(y), ops.convert_to_numpy(z), atol=1e-6
    )


def test_an_extra_feed_forward_comes_last_with_a_residual_of_its_own(x):
    extra = FeedForward(12, init_scale=1.0, name="extra_feed_forward")
    layer = sparse(extra_feed_forward=extra, cross_attention=True)
    encoder_output = x[:, :3]
    y = layer(x, encoder_output=encoder_output)
    plain = sparse(cross_attention=True)
    plain.build((None, None, HIDDEN))
    theirs = {_without_layer(w.path): w for w in layer.weights}
    for weight in plain.weights:
        weight.assign(theirs[_without_layer(weight.path)])
    z = plain(x, encoder_output=encoder_output)
    extra = layer.extra_feed_forward(layer.extra_feed_forward_norm(z))
    assert np.abs(ops.convert_to_numpy(extra)).max() > 0.1
    np.testing.assert_allclose(
        ops.convert_to_numpy(y), ops.convert_to_numpy(z + extra), atol=1e-5
    )
    again = TransformerLayer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.extra_feed_forward.intermediate_dim == 12


def _without_layer(path):
    return path.split("/", 1)[1]


def test_padding_changes_no_token_and_reaches_the_router(x):
    layer = sparse()
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    first = ops.convert_to_numpy(layer(x, padding_mask=mask))
    x[0, 3:] = 9.0
    second = ops.convert_to_numpy(layer(x, padding_mask=mask))
    np.testing.assert_array_equal(first[0, :3], second[0, :3])
    np.testing.assert_array_equal(first[1], second[1])
    tokens = ops.convert_to_numpy(layer.feed_forward.routing_stats.value)[-1]
    assert tokens == 8


def test_packed_segments_equal_separate_rows(x, rng):
    layer = dense(cross_attention=True)
    encoder_output = rng.normal(size=(2, 4, HIDDEN)).astype("float32")
    packed = layer(
        x[:1],
        padding_mask=np.array([[1, 1, 2, 2, 2]]),
        encoder_output=encoder_output[:1],
        encoder_padding_mask=np.array([[1, 2, 2, 0]]),
    )
    one = layer(x[:1, :2], encoder_output=encoder_output[:1, :1])
    two = layer(x[:1, 2:], encoder_output=encoder_output[:1, 1:3])
    apart = ops.concatenate([one, two], axis=1)
    np.testing.assert_allclose(
        ops.convert_to_numpy(packed), ops.convert_to_numpy(apart), atol=1e-5
    )


def empty(length):
    """A cache for two rows, two heads of width three."""
    return tuple(ops.zeros((2, 2, length, 3)) for _ in range(2))


def test_cached_steps_equal_one_pass(x, rng):
    layer = sparse(cross_attention=True)
    encoder_output = rng.normal(size=(2, 3, HIDDEN)).astype("float32")
    encoder_mask = np.array([[1, 1, 0], [1, 1, 1]])
    position_bias = RelativePositionBias(2, bidirectional=False)
    whole = layer(
        x,
        position_bias=position_bias(x),
        encoder_output=encoder_output,
        encoder_padding_mask=encoder_mask,
    )
    whole = ops.convert_to_numpy(whole)
    cache = (empty(5), empty(3))
    for t in range(5):
        step = x[:, t : t + 1]
        y, cache = layer(
            step,
            position_bias=position_bias(step, cache[0][0][:, 0], offset=t),
            encoder_output=encoder_output if t == 0 else None,
            encoder_padding_mask=encoder_mask,
            cache=cache,
            cache_update_index=t,
        )
        y = ops.convert_to_numpy(y)
        np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-5)


def test_statistics_are_not_those_of_decoding(x, rng):
    """A step, or a prompt, leaves them; a sequence of one token does not."""
    layer = sparse()
    position_bias = RelativePositionBias(2, bidirectional=False)
    statistics = layer.feed_forward.routing_stats
    layer(x)
    before = ops.convert_to_numpy(statistics.value)
    assert before[-1] == 10
    cache = (empty(5), None)
    for step in (x[:, :3], x[:, 3:4]):
        layer(
            step,
            position_bias=position_bias(step, cache[0][0][:, 0], offset=0),
            cache=cache,
            cache_update_index=0,
        )
        np.testing.assert_array_equal(
            ops.convert_to_numpy(statistics.value), before
        )
    for training in (True, False):
        layer(x[:, : 1 + training], training=training)
        tokens = ops.convert_to_numpy(statistics.value)[-1]
        assert tokens == 2 * (1 + training)


def test_any_layer_serves_as_feed_forward(x):
    layer = TransformerLayer(keras.layers.Dense(HIDDEN), 2, 3)
    assert ops.convert_to_numpy(layer(x, training=True)).shape == x.shape


def test_dropout_acts_in_training_only(x):
    layer = dense(dropout=0.5)
    calm = ops.convert_to_numpy(layer(x))
    np.testing.assert_array_equal(
        calm, ops.convert_to_numpy(layer(x, training=False))
    )
    noisy = ops.convert_to_numpy(layer(x, training=True))
    assert np.abs(calm - noisy).max() > 1e-3


def test_a_residual_beyond_float16_is_held_at_its_largest(x):
    layer = TransformerLayer(
        FeedForward(4, dtype="float16"), 2, 3, dtype="float16"
    )
    layer.build((None, None, HIDDEN))
    for kernel in layer.feed_forward.trainable_weights:
        kernel.assign(ops.full(kernel.shape, 200.0))
    y = layer(ops.full((1, 2, HIDDEN), 60000.0, dtype="float16"))
    y = ops.convert_to_numpy(ops.cast(y, "float32"))
    np.testing.assert_array_equal(y, 65504.0)


def test_router_losses_come_out_of_the_block(x):
    layer = sparse()
    layer(x, training=True)
    assert len(layer.losses) == 1


def test_weight_paths_are_stable(x):
    layer = dense(cross_attention=True, name="block")
    layer.build((None, None, HIDDEN))
    paths = {weight.path for weight in layer.weights}
    attention = {
        f"block/{kind}/{dense}/kernel"
        for kind in ("self_attention", "cross_attention")
        for dense in ("query", "key", "value", "output")
    }
    norms = {
        f"block/{kind}_norm/scale"
        for kind in ("self_attention", "cross_attention", "feed_forward")
    }
    feed_forward = {f"block/feed_forward/{w}/kernel" for w in ("wi", "wo")}
    assert paths == attention | norms | feed_forward


def test_config_round_trip_keeps_the_feed_forward():
    layer = sparse(cross_attention=True, dropout=0.2, layer_norm_epsilon=1e-5)
    again = TransformerLayer.from_config(layer.get_config())
    assert isinstance(again.feed_forward, SwitchLayer)
    assert again.feed_forward is not layer.feed_forward
    assert again.get_config() == layer.get_config()


def test_encoder_output_and_cross_attention_go_together(x):
    with pytest.raises(ValueError, match="encoder_output must be given"):
        dense(cross_attention=True)(x)
    with pytest.raises(ValueError, match="received encoder_output with"):
        dense()(x, encoder_output=x)


def test_a_decoder_refuses_experts_that_choose():
    feed_forward = SwitchLayer(4, 16, router="expert_choice")
    with pytest.raises(ValueError, match="router must be causal in a"):
        TransformerLayer(feed_forward, 2, 3, cross_attention=True)
    TransformerLayer(feed_forward, 2, 3)


def test_a_feed_forward_must_be_a_layer():
    with pytest.raises(ValueError, match="feed_forward must be a keras"):
        TransformerLayer("relu", 2, 3)


@pytest.mark.parametrize("extra", ["relu", SwitchLayer(4, 16)])
def test_an_extra_feed_forward_must_be_a_dense_layer(extra):
    with pytest.raises(ValueError, match="extra_feed_forward must be"):
        sparse(extra_feed_forward=extra)


def test_a_block_of_a_decoder_only_model(rng):
    block = TransformerLayer(
        FeedForward(8, activation="gelu", use_bias=True, name="feed_forward"),
        num_heads=4,
        key_value_dim=2,
        norm="layer",
        num_key_value_heads=2,
        use_bias=True,
        scaled=True,
        rotary_max_wavelength=100.0,
        name="block",
    )
    x = rng.normal(size=(2, 3, 6)).astype("float32")
    assert block(x).shape == (2, 3, 6)
    paths = {weight.path for weight in block.weights}
    assert {
        "block/self_attention_norm/bias",
        "block/self_attention/output/bias",
        "block/feed_forward/wo/bias",
    } < paths
    attention = block.self_attention
    assert (attention.num_key_value_heads, attention.scaled) == (2, True)
    assert attention.rotary_max_wavelength == 100.0
    again = TransformerLayer.from_config(block.get_config())
    assert again.get_config() == block.get_config()


@pytest.fixture
def own_model():
    """An encoder and a decoder that somebody puts together."""
    source = keras.Input((None, HIDDEN), name="source")
    source_mask = keras.Input((None,), dtype="bool", name="source_mask")
    target = keras.Input((None, HIDDEN), name="target")
    bias = RelativePositionBias(2, bidirectional=False, name="bias")
    extra = FeedForward(4, name="extra_feed_forward")
    encoded = sparse(extra_feed_forward=extra, name="encoder")(
        source, padding_mask=source_mask
    )
    decoded = dense(cross_attention=True, name="decoder")(
        target,
        position_bias=bias(target, target),
        encoder_output=encoded,
        encoder_padding_mask=source_mask,
    )
    return keras.Model([source, source_mask, target], decoded)


@pytest.mark.parametrize("mode", [None, "int8"])
def test_a_model_of_ones_own_is_saved_and_loaded(
    mode, own_model, rng, tmp_path
):
    if mode:
        own_model.quantize(mode)
    inputs = [
        rng.normal(size=(2, 5, HIDDEN)).astype("float32"),
        np.arange(5) < [[5], [3]],
        rng.normal(size=(2, 4, HIDDEN)).astype("float32"),
    ]
    wanted = own_model.predict(inputs, verbose=0)
    paths = [weight.path for weight in own_model.weights]
    path, model = tmp_path / "model.keras", own_model
    for _ in range(2):  # what was loaded is saved again
        model.save(path)
        model = keras.models.load_model(path)
        assert [weight.path for weight in model.weights] == paths
        np.testing.assert_array_equal(model.predict(inputs, verbose=0), wanted)


def test_a_model_of_ones_own_is_cloned(own_model):
    again = keras.models.clone_model(own_model)
    assert [w.path for w in again.weights] == [
        w.path for w in own_model.weights
    ]
    ours = {id(weight) for weight in own_model.weights}
    assert not ours & {id(weight) for weight in again.weights}
