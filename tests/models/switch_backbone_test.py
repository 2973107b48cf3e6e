import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.layers import FeedForward, SwitchLayer, TopKRouter
from keras_switch.models import SwitchBackbone
from tests.models import tiny


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(1)
    return tiny.backbone()


def run(backbone, x):
    # Compiled, and most tests share the shapes of `tiny.inputs`: an eager call
    # of a new shape takes JAX longer than a test.
    return backbone.predict_on_batch(x)


def feed_forwards(layers):
    return [type(layer.feed_forward) for layer in layers]


def test_names_of_inputs_and_outputs_are_those_of_t5(backbone, rng):
    assert sorted(backbone.input) == [
        "decoder_padding_mask",
        "decoder_token_ids",
        "encoder_padding_mask",
        "encoder_token_ids",
    ]
    outputs = run(backbone, tiny.inputs(rng))
    assert outputs["encoder_sequence_output"].shape == (2, 7, 16)
    assert outputs["decoder_sequence_output"].shape == (2, 5, 16)


def test_every_other_layer_is_sparse():
    backbone = tiny.backbone(
        num_encoder_layers=4, num_decoder_layers=3, decoder_sparse_step=[0]
    )
    assert feed_forwards(backbone.encoder_transformer_layers) == [
        FeedForward,
        SwitchLayer,
        FeedForward,
        SwitchLayer,
    ]
    assert feed_forwards(backbone.decoder_transformer_layers) == [
        SwitchLayer,
        FeedForward,
        FeedForward,
    ]


def test_without_sparse_layers_no_experts_are_needed():
    backbone = tiny.backbone(
        num_experts=None, encoder_sparse_step=0, decoder_sparse_step=0
    )
    assert not any("router" in w.path for w in backbone.weights)


def test_weight_paths_are_public(backbone):
    paths = {weight.path for weight in backbone.weights}
    assert {
        "token_embedding/embeddings",
        "encoder_relative_attention_bias/embeddings",
        "encoder_layer_0/self_attention_norm/scale",
        "encoder_layer_0/self_attention/query/kernel",
        "encoder_layer_0/feed_forward/wi/kernel",
        "encoder_layer_1/feed_forward/router/kernel",
        "encoder_layer_1/feed_forward/experts/wo/kernel",
        "encoder_layer_norm/scale",
        "decoder_relative_attention_bias/embeddings",
        "decoder_layer_1/cross_attention_norm/scale",
        "decoder_layer_1/cross_attention/output/kernel",
        "decoder_layer_norm/scale",
    } <= paths


def test_the_embedding_starts_at_variance_one_and_the_logits_kernel_at_1_d():
    backbone = tiny.backbone(vocabulary_size=2000, tie_embedding_weights=False)
    embedding = backbone.token_embedding
    spread = ops.convert_to_numpy(embedding.embeddings).std()
    np.testing.assert_allclose(spread, 1.0, rtol=0.02)
    spread = ops.convert_to_numpy(embedding.reverse_embeddings).std()
    np.testing.assert_allclose(spread, 16**-0.5, rtol=0.02)


def test_padding_changes_no_token(backbone, rng):
    x = tiny.inputs(rng)
    first = run(backbone, x)
    for name in ("encoder", "decoder"):
        ids, mask = x[f"{name}_token_ids"], x[f"{name}_padding_mask"]
        x[f"{name}_token_ids"] = np.where(mask, ids, 9).astype("int32")
    second = run(backbone, x)
    for name in ("encoder", "decoder"):
        real = x[f"{name}_padding_mask"].astype(bool)
        key = f"{name}_sequence_output"
        np.testing.assert_array_equal(first[key][real], second[key][real])


def test_the_decoder_does_not_see_later_tokens(backbone, rng):
    x = tiny.inputs(rng)
    first = run(backbone, x)["decoder_sequence_output"]
    x["decoder_token_ids"][0, 3:] = 4
    second = run(backbone, x)["decoder_sequence_output"]
    np.testing.assert_allclose(first[0, :3], second[0, :3], atol=1e-6)
    assert np.abs(first[0, 3:] - second[0, 3:]).max() > 1e-3


def test_a_row_alone_equals_the_row_in_a_batch(backbone, rng):
    x = tiny.inputs(rng)
    whole = run(backbone, x)
    alone = run(backbone, {name: ids[1:] for name, ids in x.items()})
    for name, value in alone.items():
        np.testing.assert_allclose(value[0], whole[name][1], atol=1e-5)


def test_packed_segments_equal_separate_rows(backbone, rng):
    encoder_ids = rng.integers(3, tiny.VOCABULARY, (1, 7)).astype("int32")
    decoder_ids = rng.integers(3, tiny.VOCABULARY, (1, 5)).astype("int32")
    packed = {
        "encoder_token_ids": np.repeat(encoder_ids, 2, axis=0),
        "encoder_padding_mask": np.array([[1, 1, 1, 1, 2, 2, 0]] * 2),
        "decoder_token_ids": np.repeat(decoder_ids, 2, axis=0),
        "decoder_padding_mask": np.array([[1, 1, 2, 2, 2]] * 2),
    }
    apart = {
        "encoder_token_ids": np.array(
            [encoder_ids[0], np.roll(encoder_ids[0], -4)]
        ),
        "encoder_padding_mask": np.array(
            [[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
        ),
        "decoder_token_ids": np.array(
            [decoder_ids[0], np.roll(decoder_ids[0], -2)]
        ),
        "decoder_padding_mask": np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]),
    }
    packed = run(backbone, packed)["decoder_sequence_output"][0]
    apart = run(backbone, apart)["decoder_sequence_output"]
    apart = np.concatenate([apart[0, :2], apart[1, :3]])
    np.testing.assert_allclose(packed, apart, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "mixed_bfloat16"])
def test_half_precision_is_finite_with_padding(dtype, rng):
    backbone = tiny.backbone(dtype=dtype)
    for value in run(backbone, tiny.inputs(rng)).values():
        assert str(value.dtype) == dtype.removeprefix("mixed_")
        assert np.isfinite(value.astype("float32")).all()


def test_config_round_trip_through_json():
    backbone = tiny.backbone(
        router=TopKRouter(k=2, second_policy="all"),
        decoder_router="switch",
        encoder_sparse_step=[0, 1],
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        activation="gated-gelu",
        expert_dropout=0.4,
        name="mine",
    )
    config = json.loads(json.dumps(backbone.get_config()))
    again = SwitchBackbone.from_config(config)
    assert again.get_config() == backbone.get_config()
    router = again.encoder_transformer_layers[0].feed_forward.router
    assert (router.k, router.second_policy) == (2, "all")
    assert [w.path for w in again.weights] == [w.path for w in backbone.weights]
    assert again.encoder_relative_attention_bias.num_buckets == 8


def test_arguments_reach_the_sparse_layers():
    backbone = tiny.backbone(
        dispatch="einsum",
        capacity_factor=2.0,
        eval_capacity_factor=3.0,
        min_capacity=2,
        group_size=5,
        dropout=0.1,
        expert_dropout=0.4,
        init_scale=0.5,
        activation="gelu",
    )
    layer = backbone.decoder_transformer_layers[1].feed_forward
    assert layer.dispatch == "einsum"
    assert (layer.capacity_factor, layer.eval_capacity_factor) == (2.0, 3.0)
    assert (layer.min_capacity, layer.group_size) == (2, 5)
    assert (layer.dropout, layer.expert_dropout) == (0.1, 0.4)
    assert (layer.init_scale, layer.activation) == (0.5, "gelu")


def test_experts_that_choose_are_refused_in_a_decoder_only():
    with pytest.raises(ValueError, match='Pass decoder_router="switch"'):
        tiny.backbone(router="expert_choice")
    tiny.backbone(router="expert_choice", decoder_router="switch")
    tiny.backbone(router="expert_choice", decoder_sparse_step=0)


def test_width_of_a_head_defaults_to_hidden_dim_over_heads():
    backbone = tiny.backbone(key_value_dim=None)
    assert backbone.key_value_dim == 8
    with pytest.raises(ValueError, match="hidden_dim must be a multiple of"):
        tiny.backbone(key_value_dim=None, num_heads=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be an int at least 1"),
        ({"num_encoder_layers": 0}, "received num_encoder_layers=0"),
        ({"num_decoder_layers": -1}, "received num_decoder_layers=-1"),
        ({"num_heads": 0}, "received num_heads=0"),
        ({"hidden_dim": 16.0}, "received hidden_dim=16.0"),
        ({"intermediate_dim": None}, "received intermediate_dim=None"),
        ({"key_value_dim": 0}, "received key_value_dim=0"),
        ({"num_experts": 0}, "num_experts must be an int at least 1"),
        ({"num_experts": None}, "received num_experts=None"),
        ({"encoder_sparse_step": -2}, "received encoder_sparse_step=-2"),
        ({"decoder_sparse_step": [2]}, "decoder_sparse_step must be"),
        ({"dropout": 1.0}, "dropout must be a number"),
        ({"expert_dropout": -0.1}, "received expert_dropout=-0.1"),
        ({"capacity_factor": 0}, "capacity_factor must be a number above 0"),
        ({"router": "best"}, "router must be one of 'switch'"),
        ({"dispatch": "scatter"}, "dispatch must be one of"),
        ({"activation": "gated-x"}, "activation must be the name"),
        ({"layer_norm_epsilon": 0}, "received layer_norm_epsilon=0"),
        ({"relative_attention_num_buckets": 6}, "num_buckets must be"),
        ({"relative_attention_max_distance": 8}, "max_distance must be"),
        ({"dropuot": 0.3}, "SwitchBackbone has no argument dropuot"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny.backbone(**arguments)
