"""All models go by the same door."""

import inspect
import pathlib

import keras
import numpy as np
import pytest

from keras_switch.files import MANIFEST
from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchSeq2SeqLM,
)
from keras_switch.models.preset_model import PresetModel
from tests.models import tiny

DENSE = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 0,
    "decoder_sparse_step": 0,
}


@pytest.mark.parametrize(
    "cls",
    [SwitchBackbone, SwitchSeq2SeqLM, SwitchCausalBackbone, SwitchCausalLM],
)
def test_the_door_stands_before_keras_hubs(cls):
    for name in ("from_preset", "save_to_preset"):
        assert getattr(cls, name).__qualname__ == f"PresetModel.{name}"
    assert cls.__mro__.index(PresetModel) == 1
    arguments = inspect.signature(cls.from_preset).parameters
    assert arguments["allow_unverified"].default is False


def test_a_short_name_needs_no_manifest():
    backbone = SwitchBackbone.from_preset(
        "t5_mini", load_weights=False, hidden_dim=8, vocabulary_size=20
    )
    assert backbone.hidden_dim == 8


def test_what_is_saved_is_whole_and_has_a_manifest(tmp_path, monkeypatch):
    model = tiny.backbone(**DENSE)
    model.save_to_preset(tmp_path / "preset")
    before = sorted(p.name for p in (tmp_path / "preset").iterdir())
    assert MANIFEST in before

    def fails(self, path, **kwargs):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(SwitchBackbone, "save_weights", fails)
    with pytest.raises(OSError, match="disk full"):
        model.save_to_preset(tmp_path / "preset")
    SwitchBackbone.from_preset(tmp_path / "preset")
    assert [p.name for p in tmp_path.iterdir()] == ["preset"]


MODELS = {
    "lm": (tiny.lm, tiny.inputs),
    "causal": (tiny.causal_backbone, tiny.causal_inputs),
}


@pytest.mark.parametrize("which", MODELS)
def test_one_pass_is_exported_for_any_lengths(which, rng, tmp_path):
    make, inputs = MODELS[which]
    model = make()
    path = str(tmp_path / "served")
    if keras.backend.backend() == "torch":
        with pytest.raises(RuntimeError, match="KERAS_BACKEND=tensorflow"):
            model.export(path)
        return
    import tensorflow as tf

    model.export(path, verbose=False)
    served = tf.saved_model.load(path)
    x = inputs(rng)
    np.testing.assert_allclose(
        served.serve({k: tf.cast(v, "int32") for k, v in x.items()}),
        model.predict(x, verbose=0),
        rtol=1e-5,
        atol=1e-5,
    )
