"""Models from folders: what is read, what is refused before it costs."""

import json
import shutil

import keras
import keras_hub
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.models import (
    SwitchBackbone,
    SwitchSeq2SeqLM,
    SwitchSeq2SeqLMPreprocessor,
    SwitchTokenizer,
)
from keras_switch.models.preset_config import ROUTER_FIELDS
from tests.faults.hostile_files import change, seal
from tests.models import tiny
from tests.models.preset_config_test import OwnRouter

SMALL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 0,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "preset"
    lm = tiny.lm(tiny.preprocessor(), **SMALL, name="mine")
    lm.save_to_preset(folder)
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "preset")


def test_nothing_is_looked_up(folder, monkeypatch):
    """Keras' own readers would look up what the file names."""

    def forbidden(*args, **kwargs):
        raise AssertionError("a class was looked up")

    for module, name in (
        (keras.saving, "deserialize_keras_object"),
        (keras.layers, "deserialize"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    backbone = SwitchBackbone.from_preset(folder)
    assert backbone.name == "mine"
    preprocessor = SwitchSeq2SeqLMPreprocessor.from_preset(folder)
    assert preprocessor.decoder_sequence_length == 6


def test_a_preset_that_keras_hub_wrote(tmp_path):
    lm = tiny.lm(tiny.preprocessor(), **SMALL)
    keras_hub.models.Seq2SeqLM.save_to_preset(lm, str(tmp_path))
    manifest = tmp_path / "manifest.json"
    manifest.unlink()  # of the parts, which save themselves
    classes = (
        SwitchSeq2SeqLM,
        SwitchBackbone,
        SwitchTokenizer,
        SwitchSeq2SeqLMPreprocessor,
    )
    for cls in classes:
        with pytest.raises(CheckpointError, match="allow_unverified=True"):
            cls.from_preset(tmp_path)
        with pytest.warns(UserWarning, match="unverified"):
            again = cls.from_preset(tmp_path, allow_unverified=True)
        assert type(again) is cls


def test_a_task_without_its_file_is_put_together_from_its_parts(folder):
    (folder / "task.json").unlink()
    seal(folder)
    lm = SwitchSeq2SeqLM.from_preset(folder, load_weights=False)
    assert lm.preprocessor.encoder_sequence_length == 8
    (folder / "preprocessor.json").unlink()
    seal(folder)
    lm = SwitchSeq2SeqLM.from_preset(folder, load_weights=False)
    assert lm.preprocessor.encoder_sequence_length == 1024
    (folder / "tokenizer.json").unlink()
    seal(folder)
    lm = SwitchSeq2SeqLM.from_preset(folder, load_weights=False)
    assert lm.preprocessor is None


def test_parts_may_be_given(folder):
    backbone = tiny.backbone(**SMALL)
    lm = SwitchSeq2SeqLM.from_preset(
        folder, backbone=backbone, preprocessor=None, name="other"
    )
    assert lm.backbone is backbone and lm.name == "other"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "task.json",
            lambda c: c["config"]["backbone"]["config"].update(dropout=0.5),
            "config.backbone must be what config.json holds",
        ),
        (
            "task.json",
            lambda c: c["config"].update(compile_config={}),
            "compile_config must be absent",
        ),
        (
            "preprocessor.json",
            lambda c: c["config"]["tokenizer"]["config"].update(extra_ids=3),
            "config.tokenizer must be what tokenizer.json holds",
        ),
        (
            "config.json",
            lambda c: c["config"].update(num_experts=5),
            "must be of shape",
        ),
        (
            "config.json",
            lambda c: c["config"].update(num_experts=5000),
            "numbers, for the model that the configuration describes",
        ),
    ],
)
def test_files_that_do_not_agree(folder, name, edit, message):
    change(name, edit)(folder)
    if name != "task.json":
        (folder / "task.json").unlink()
    seal(folder)
    with pytest.raises(CheckpointError, match=message):
        SwitchSeq2SeqLM.from_preset(folder)


def test_a_tokenizer_larger_than_the_embedding(tmp_path):
    tiny.lm(tiny.preprocessor(), **SMALL, vocabulary_size=149).save_to_preset(
        tmp_path
    )
    with pytest.raises(CheckpointError, match="at least 150"):
        SwitchSeq2SeqLM.from_preset(tmp_path)


def test_a_budget_is_kept_before_a_layer_is_made(folder, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a layer was made")

    monkeypatch.setattr(SwitchBackbone, "_make_embedding", forbidden)
    for load_weights in (True, False):
        with pytest.raises(CheckpointError, match="at most 1,000 bytes"):
            SwitchSeq2SeqLM.from_preset(folder, load_weights, max_bytes=1000)


def test_overrides_that_are_wrong_are_the_callers(folder):
    with pytest.raises(ValueError, match="num_heads must be") as caught:
        SwitchBackbone.from_preset(folder, load_weights=False, num_heads=0)
    assert not isinstance(caught.value, CheckpointError)
    with pytest.raises(ValueError, match="extra_ids must be") as caught:
        SwitchTokenizer.from_preset(folder, extra_ids=-1)
    assert not isinstance(caught.value, CheckpointError)


def test_a_router_of_the_users_own(tmp_path):
    tiny.backbone(**SMALL | {"router": OwnRouter(slope=2.0)}).save_to_preset(
        tmp_path
    )
    assert "tests>OwnRouter" not in ROUTER_FIELDS
    with pytest.raises(CheckpointError, match="one of keras_switch>SwitchRou"):
        SwitchBackbone.from_preset(tmp_path)
    again = SwitchBackbone.from_preset(tmp_path, routers=[OwnRouter])
    router = again.encoder_transformer_layers[0].feed_forward.router
    assert type(router) is OwnRouter and router.slope == 2.0


def test_a_router_of_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(OwnRouter, "__module__", "__main__")
    tiny.backbone(**SMALL | {"router": OwnRouter()}).save_to_preset(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())["config"]
    assert config["router"]["module"] is None
    again = SwitchBackbone.from_preset(tmp_path, routers=[OwnRouter])
    router = again.encoder_transformer_layers[0].feed_forward.router
    assert type(router) is OwnRouter


def test_a_vocabulary_that_is_damaged(folder):
    path = folder / "assets" / "tokenizer" / "vocabulary.spm"
    whole = path.read_bytes()
    for data in (b"", b"\xff" * 100, whole[:-9], np.zeros(99, "u1").tobytes()):
        path.write_bytes(data)
        seal(folder)
        with pytest.raises(CheckpointError, match="vocabulary.spm: content m"):
            SwitchTokenizer.from_preset(folder)
    (folder / "config.json").write_text(json.dumps({}))
