import json

import numpy as np
import pytest

from keras_switch.layers import FeedForward, SwitchLayer, TopKRouter
from keras_switch.models import SwitchCausalBackbone
from tests.models import tiny

ALL = pytest.mark.parametrize("family", tiny.FAMILIES)


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def backbone(request):
    return tiny.causal_backbone(request.param)


def run(backbone, x):
    return backbone.predict_on_batch(x)


def test_names_are_those_of_keras_hubs_decoders(backbone, rng):
    assert sorted(backbone.input) == ["padding_mask", "token_ids"]
    assert run(backbone, tiny.causal_inputs(rng)).shape == (3, 7, 16)


def test_padding_changes_no_token_on_either_side(backbone, rng):
    x = tiny.causal_inputs(rng)
    ids, mask = x["token_ids"], x["padding_mask"].astype(bool)
    first = run(backbone, x)
    others = {**x, "token_ids": np.where(mask, ids, 9).astype("int32")}
    np.testing.assert_array_equal(first[mask], run(backbone, others)[mask])
    # The same rows with their padding on the left.
    left = {name: value.copy() for name, value in x.items()}
    for row, length in enumerate(mask.sum(axis=1)):
        for name in left:
            left[name][row] = np.roll(x[name][row], 7 - length)
    second = run(backbone, left)[left["padding_mask"].astype(bool)]
    np.testing.assert_allclose(first[mask], second, atol=1e-4)


def test_no_token_sees_later_ones(backbone, rng):
    x = tiny.causal_inputs(rng)
    first = run(backbone, x)
    x["token_ids"][0, 4:] = 4
    second = run(backbone, x)
    np.testing.assert_allclose(first[0, :4], second[0, :4], atol=1e-5)
    assert np.abs(first[0, 4:] - second[0, 4:]).max() > 1e-2


def test_where_a_token_stands_matters(backbone, rng):
    """The order of the tokens before the last one changes its output."""
    x = tiny.causal_inputs(rng)
    first = run(backbone, x)
    x["token_ids"][0, :6] = x["token_ids"][0, :6][::-1]
    assert np.abs(first[0, 6] - run(backbone, x)[0, 6]).max() > 1e-2


def test_a_row_alone_equals_the_row_in_a_batch(backbone, rng):
    x = tiny.causal_inputs(rng)
    whole = run(backbone, x)
    alone = run(backbone, {name: ids[1:2] for name, ids in x.items()})
    np.testing.assert_allclose(alone[0], whole[1], atol=1e-5)


def test_packed_segments_equal_separate_rows(backbone, rng):
    ids = rng.integers(3, tiny.VOCABULARY, (3, 7)).astype("int32")
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]] * 3)
    packed = run(backbone, {"token_ids": ids, "padding_mask": segments})[0]
    apart = np.stack([ids[0], np.roll(ids[0], -3), ids[0]])
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]])
    mask = np.concatenate([mask, mask[:1]])
    apart = run(backbone, {"token_ids": apart, "padding_mask": mask})
    np.testing.assert_allclose(packed[:3], apart[0, :3], atol=1e-5)
    np.testing.assert_allclose(packed[3:5], apart[1, :2], atol=1e-5)


@ALL
def test_float16_is_finite_with_padding(family, rng):
    backbone = tiny.causal_backbone(family, dtype="float16")
    value = run(backbone, tiny.causal_inputs(rng))
    assert str(value.dtype) == "float16"
    assert np.isfinite(value.astype("float32")).all()


def feed_forwards(backbone):
    return [type(layer.feed_forward) for layer in backbone.transformer_layers]


def test_which_layers_are_sparse():
    backbone = tiny.causal_backbone(num_layers=4, sparse_step=2)
    both = [FeedForward, SwitchLayer]
    assert feed_forwards(backbone) == both * 2
    backbone = tiny.causal_backbone(num_layers=3, sparse_step=[0])
    assert feed_forwards(backbone) == [SwitchLayer, FeedForward, FeedForward]
    backbone = tiny.causal_backbone(num_experts=None, sparse_step=0)
    assert feed_forwards(backbone) == [FeedForward] * 2


def test_experts_may_be_of_another_width_and_activation():
    backbone = tiny.causal_backbone(
        sparse_step=2,
        activation="gated-gelu",
        expert_activation="relu",
        expert_intermediate_dim=7,
        expert_dropout=0.4,
    )
    dense, sparse = (x.feed_forward for x in backbone.transformer_layers)
    assert (dense.activation, dense.intermediate_dim) == ("gated-gelu", 32)
    assert (sparse.activation, sparse.intermediate_dim) == ("relu", 7)
    assert sparse.expert_dropout == 0.4


def test_weight_paths_are_public():
    paths = {w.path for w in tiny.causal_backbone("fairseq").weights}
    assert {
        "token_embedding/embeddings",
        "transformer_layer_0/self_attention_norm/bias",
        "transformer_layer_0/self_attention/query/kernel",
        "transformer_layer_0/self_attention/output/bias",
        "transformer_layer_0/feed_forward/wi/bias",
        "transformer_layer_1/feed_forward/router/kernel",
        "transformer_layer_1/feed_forward/experts/wo/bias",
        "layer_norm/scale",
    } < paths
    paths = {w.path for w in tiny.causal_backbone("glam").weights}
    assert "relative_attention_bias_1/embeddings" in paths
    paths = {w.path for w in tiny.causal_backbone("gpt").weights}
    assert "position_embedding/embeddings" in paths


def test_config_round_trip_through_json():
    backbone = tiny.causal_backbone(
        "glam", router=TopKRouter(k=2, second_policy="all"), name="mine"
    )
    config = json.loads(json.dumps(backbone.get_config()))
    again = SwitchCausalBackbone.from_config(config)
    assert again.get_config() == backbone.get_config()
    router = again.transformer_layers[0].feed_forward.router
    assert (router.k, router.second_policy) == (2, "all")
    assert [w.path for w in again.weights] == [w.path for w in backbone.weights]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "num_layers must be an int at least 1"),
        ({"num_heads": 0}, "received num_heads=0"),
        ({"num_key_value_heads": 3}, "multiple of num_key_value_heads"),
        ({"key_value_dim": 5}, "key_value_dim must be even"),
        ({"num_experts": None}, "received num_experts=None"),
        ({"sparse_step": [2]}, "sparse_step must be"),
        ({"expert_intermediate_dim": 0}, "expert_intermediate_dim must be"),
        ({"activation": "x", "expert_activation": "relu"}, "activation must"),
        ({"expert_activation": "x"}, "activation must be the name"),
        ({"norm": "batch"}, "norm must be one of"),
        ({"position": "none"}, "position must be one of"),
        ({"position": "learned"}, "max_sequence_length must be an int"),
        ({"rotary_max_wavelength": 0}, "rotary_max_wavelength must be"),
        ({"router": "expert_choice"}, 'Pass router="switch"'),
        ({"capacity_factor": 0}, "capacity_factor must be a number above 0"),
        ({"dropuot": 0.3}, "SwitchCausalBackbone has no argument dropuot"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny.causal_backbone(**arguments)


def test_sequences_longer_than_the_learned_positions_are_refused(rng):
    backbone = tiny.causal_backbone("gpt")
    with pytest.raises(ValueError, match="at most 24 tokens"):
        backbone(tiny.causal_inputs(rng, 1, 25))
