"""Both backbones are one in what they share."""

import pytest

from keras_switch.layers import SwitchLayer
from keras_switch.models import SwitchBackbone, SwitchCausalBackbone
from keras_switch.models.sparse_backbone import SparseBackbone
from tests.models import tiny

BOTH = pytest.mark.parametrize("make", [tiny.backbone, tiny.causal_backbone])


@pytest.mark.parametrize("cls", [SwitchBackbone, SwitchCausalBackbone])
def test_what_they_share_stands_before_keras_hubs(cls):
    for name in ("get_config", "get_layout_map", "export_to_transformers"):
        assert getattr(cls, name) is getattr(SparseBackbone, name)
    assert "dtype" not in cls.argument_names
    assert cls.argument_names[0] == "vocabulary_size"


@BOTH
def test_stacks_hold_every_layer(make):
    backbone = make()
    layers = [x for stack in backbone.stacks.values() for x in stack]
    assert {x.name for x in layers} == {
        w.path.split("/")[0] for w in backbone.weights if "_layer_" in w.path
    } - {"encoder_layer_norm", "decoder_layer_norm"}


@BOTH
def test_a_capacity_in_evaluation_makes_rows_depend_on_each_other(make):
    assert not make().is_batch_dependent
    assert make(capacity=3).is_batch_dependent
    assert make(eval_capacity_factor=2.0).is_batch_dependent


@BOTH
def test_arguments_reach_the_sparse_layers(make):
    backbone = make(
        dispatch="einsum",
        capacity_factor=2.0,
        eval_capacity_factor=3.0,
        min_capacity=2,
        group_size=5,
        dropout=0.1,
        expert_dropout=0.4,
        init_scale=0.5,
        num_shared_experts=2,
        expert_blocks=3,
    )
    layer = backbone.stacks["decoder"][1].feed_forward
    assert isinstance(layer, SwitchLayer)
    assert (layer.dispatch, layer.group_size) == ("einsum", 5)
    assert (layer.capacity_factor, layer.eval_capacity_factor) == (2.0, 3.0)
    assert (layer.min_capacity, layer.init_scale) == (2, 0.5)
    assert (layer.dropout, layer.expert_dropout) == (0.1, 0.4)
    assert layer.shared_expert.intermediate_dim == 2 * layer.intermediate_dim
    assert layer.shared_expert.dropout == 0.4
    assert [block.dropout for block in layer.experts.blocks] == [0.4] * 3


@BOTH
def test_an_extra_feed_forward_stands_beside_sparse_layers_alone(make):
    step = {} if make is tiny.backbone else {"sparse_step": 2}
    backbone = make(extra_feed_forward=True, **step)
    dense, sparse = backbone.stacks["decoder"]
    assert dense.extra_feed_forward is None
    extra = sparse.extra_feed_forward
    assert extra.intermediate_dim == backbone.intermediate_dim
    assert extra.activation == backbone.activation
    again = type(backbone).from_config(backbone.get_config())
    assert again.get_config() == backbone.get_config()
    paths = [w.path for w in again.weights]
    assert paths == [w.path for w in backbone.weights]
    assert f"{sparse.name}/extra_feed_forward_norm/scale" in paths
    assert f"{sparse.name}/extra_feed_forward/wo/kernel" in paths


class Layout:
    """Reads an encoder-decoder, whatever the folder."""

    @staticmethod
    def load_backbone(folder, load_weights):
        return tiny.backbone()


def test_a_folder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="holds a SwitchBackbone. Load it by"):
        SwitchCausalBackbone._from_layout(Layout, "folder", True)
    found = SwitchBackbone._from_layout(Layout, "folder", True)
    assert type(found) is SwitchBackbone
