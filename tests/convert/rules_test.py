"""The maps: every weight has one place, in each layout."""

import pytest

import keras_switch
from keras_switch.convert import rules
from tests.models import tiny

TABLES = {"transformers": rules.HUGGINGFACE, "t5x": rules.T5X}


@pytest.mark.parametrize("table", TABLES)
def test_each_weight_once(table):
    backbone = tiny.backbone(tie_embedding_weights=False)
    entries = rules.entries(backbone, TABLES[table])
    names = [name for entry in entries for name in entry.sources]
    assert len(names) == len(set(names))
    assert [e.path for e in entries] == [
        v.path for v in rules.variables(backbone)
    ]


def test_shapes_there():
    backbone = tiny.backbone()
    entries = {e.path: e for e in rules.entries(backbone, rules.HUGGINGFACE)}
    experts = entries["encoder_layer_1/feed_forward/experts/wi/kernel"]
    assert experts.shape == (4, 16, 32)
    assert experts.source_shape == (32, 16)
    assert experts.sources[3] == (
        "encoder.block.1.layer.1.mlp.experts.expert_3.wi.weight"
    )
    decoder = entries["decoder_layer_1/feed_forward/router/kernel"]
    assert decoder.sources == (
        "decoder.block.1.layer.2.mlp.router.classifier.weight",
    )


def test_a_weight_without_a_place():
    with pytest.raises(ValueError, match="token_embedding/embeddings"):
        rules.entries(tiny.backbone(), rules.HUGGINGFACE[1:])


def test_numbers_of_base_8():
    """437 different tensors of `transformers`, 269 leaves of T5X."""
    small = keras_switch.SwitchBackbone.from_preset(
        "switch_base_8",
        load_weights=False,
        hidden_dim=12,
        intermediate_dim=2,
        key_value_dim=1,
        vocabulary_size=8,
    )
    entries = rules.entries(small, rules.HUGGINGFACE)
    assert len({name for e in entries for name in e.sources}) == 437
    assert len(rules.entries(small, rules.T5X)) == 269
