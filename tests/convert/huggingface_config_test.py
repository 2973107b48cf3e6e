"""`config.json` of `transformers`, read and written."""

import json

import pytest

from keras_switch import SwitchBackbone
from keras_switch.convert import huggingface_config
from keras_switch.files import CheckpointError
from tests.models import tiny

transformers = pytest.importorskip("transformers")


def read(tmp_path, **fields):
    config = {"model_type": "switch_transformers", "d_model": 16}
    config |= {"num_layers": 4, "num_heads": 2, **fields}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return huggingface_config.read_configuration(path)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 6, 12])
def test_sparse_layers_as_transformers_has_them(layers):
    """Held to where its own model puts them."""
    for sparse in range(layers + 2):
        config = transformers.SwitchTransformersConfig(
            num_layers=layers, num_sparse_encoder_layers=sparse
        )
        step = config.encoder_sparse_step
        wanted = [
            i
            for i in range(layers)
            if step > 0 and (i % step == 1 or step == 1)
        ]
        assert huggingface_config._sparse_layers(layers, sparse) == wanted


def test_fields_that_are_left_out(tmp_path):
    """Old files lack some; their meaning is that of `transformers`."""
    arguments = read(tmp_path, num_decoder_layers=None).arguments
    assert arguments["num_decoder_layers"] == 4
    assert arguments["num_experts"] == 8
    assert arguments["tie_embedding_weights"] is True
    assert arguments["encoder_sparse_step"] == [0, 1, 2, 3]
    assert read(tmp_path).expert_capacity == 64
    with pytest.raises(CheckpointError, match="d_model must be a int"):
        read(tmp_path, d_model=None)


def test_a_t5(tmp_path):
    configuration = read(
        tmp_path, model_type="t5", feed_forward_proj="gated-gelu"
    )
    arguments = configuration.arguments
    assert arguments["activation"] == "gated-gelu"
    assert arguments["num_experts"] is None
    assert configuration.expert_capacity is None


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_logits_of_a_t5(tmp_path, tied, scaled):
    arguments = read(
        tmp_path,
        model_type="t5",
        tie_word_embeddings=tied,
        scale_decoder_outputs=scaled,
    ).arguments
    assert arguments["tie_embedding_weights"] is (tied and scaled)


def test_written_and_read_again(tmp_path):
    """The same model, but for what `transformers` has no words for."""
    backbone = tiny.backbone(dropout=0.2, capacity=3)
    config = huggingface_config.configuration_of(backbone).config
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = SwitchBackbone(
        **huggingface_config.read_configuration(
            tmp_path / "config.json"
        ).arguments
    )
    before, after = backbone.get_config(), again.get_config()
    differ = {name for name in before if before[name] != after[name]}
    assert differ == {
        "name",
        "capacity",  # only where it is asked for
        "router",  # a name before, its settings after
        "encoder_sparse_step",  # a step before, a list after
        "decoder_sparse_step",
        "init_scale",
    }
