"""Which layout a folder is in, and models from any of them."""

import numpy as np
import pytest
from keras import ops

from keras_switch import convert, files
from keras_switch.convert import rules
from tests.models import tiny

pytest.importorskip("safetensors")


@pytest.mark.parametrize("kind", ["keras", "huggingface"])
def test_there_and_back(tmp_path, kind):
    backbone = tiny.backbone()
    if kind == "keras":
        backbone.save_to_preset(tmp_path / "model")
    else:
        backbone.export_to_transformers(tmp_path / "model")
    assert convert.kind_of(tmp_path / "model") == kind
    again = convert.load(tmp_path / "model").backbone
    for ours, theirs in zip(
        rules.variables(backbone), rules.variables(again), strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs)
        )


def test_a_t5x_folder(tmp_path):
    (tmp_path / "checkpoint").write_bytes(b"not one")
    assert convert.kind_of(tmp_path) == "t5x"
    with pytest.raises(files.CheckpointError):
        convert.load(tmp_path)


def test_none_of_them(tmp_path):
    with pytest.raises(ValueError, match="folder must hold config.json"):
        convert.kind_of(tmp_path)


def test_tables():
    backbone = tiny.backbone()
    assert convert.table_of("t5x", backbone) is rules.T5X
    assert convert.table_of("huggingface", backbone) is rules.HUGGINGFACE
    dense = tiny.backbone(encoder_sparse_step=0, decoder_sparse_step=0)
    assert convert.table_of("huggingface", dense) is rules.HUGGINGFACE_T5
