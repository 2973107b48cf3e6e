"""The binary that writes for servers."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import models
from keras_switch_train import export, flags
from tests.convert import onnx_test, saved_model_test
from tests.models import tiny

ON_TORCH = keras.backend.backend() == "torch"


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("export") / "preset")
    keras.utils.set_random_seed(5)
    lm = tiny.lm(
        tiny.preprocessor(),
        num_encoder_layers=1,
        num_decoder_layers=1,
        decoder_sparse_step=1,
    )
    lm.save_to_preset(folder)
    return folder


@pytest.fixture
def run(preset, tmp_path, capsys):
    def run(**values):
        if not absl_flags.FLAGS.is_parsed():
            absl_flags.FLAGS(["test"])
        given = {
            "backend": keras.backend.backend(),
            "preset": preset,
            "output": str(tmp_path / "served"),
            **values,
        }
        with flagsaver.flagsaver(**given):
            export.main()
        return capsys.readouterr().out

    return run


def inputs(lm):
    """Texts as the two arrays of an encoder, and what is generated of them."""
    lm.compile(sampler="greedy")
    x = lm.preprocessor.generate_preprocess(["a dog", "the moon"])
    arrays = {
        name: keras.ops.convert_to_numpy(array).astype("int32")
        for name, array in x.items()
        if name.startswith("encoder")
    }
    return arrays, lm.generate(["a dog", "the moon"])


@pytest.mark.skipif(ON_TORCH, reason="torch has no SavedModel")
@pytest.mark.any_backend
def test_a_saved_model_as_long_as_the_preset(run, preset, tmp_path):
    said = run(format="saved_model", text=True)
    assert "input_length 8, max_length 6" in said
    lm = models.SwitchSeq2SeqLM.from_preset(preset)
    _, wanted = inputs(lm)
    texts = ["a dog", "the moon"]
    assert saved_model_test.serve_text(tmp_path / "served", texts) == wanted
    assert "nothing is left" in run(format="saved_model", text=True)
    with pytest.raises(flags.UsageError, match="with another rows, search"):
        run(format="saved_model", rows=2, search="beam", text=True)
    with pytest.raises(flags.UsageError, match="with another text"):
        run(format="saved_model")


@pytest.mark.skipif(not ON_TORCH, reason="torch writes ONNX")
def test_onnx_of_other_lengths(run, preset, tmp_path):
    said = run(format="onnx", rows=2, decoder_length=4)
    assert "input_length 8, max_length 4" in said
    lm = models.SwitchSeq2SeqLM.from_preset(preset)
    arrays, wanted = inputs(lm)
    ids, _ = onnx_test.decode(tmp_path / "served", arrays, 4, layers=1)
    short = lm.generate(["a dog", "the moon"], max_length=4)
    mask = np.cumsum(ids == lm.preprocessor.tokenizer.end_token_id, 1) == 0
    texts = lm.preprocessor.generate_postprocess(
        {"decoder_token_ids": ids, "decoder_padding_mask": mask}
    )
    assert list(texts) == short != wanted
    assert "nothing is left to do" in run(
        format="onnx", rows=2, decoder_length=4
    )


@pytest.mark.parametrize(
    "values, message",
    [
        ({"output": "PRESET"}, "--output must be a new folder"),
        ({"preset": "nowhere"}, "--preset: "),
        ({"preset": "BARE"}, "--encoder_length must be given, as --preset has"),
        ({"preset": "ALONE", "encoder_length": 4}, "goes with an encoder"),
        ({"preset": "ALONE", "format": "onnx"}, "--format: "),
    ],
)
@pytest.mark.any_backend
def test_bad_flags(values, message, run, preset, tmp_path):
    if values.get("preset") == "BARE":
        tiny.backbone().save_to_preset(str(tmp_path / "other"))
    if values.get("preset") == "ALONE":
        lm = tiny.causal_lm(preprocessor=tiny.causal_preprocessor())
        lm.save_to_preset(str(tmp_path / "other"))
    places = dict.fromkeys(("BARE", "ALONE"), str(tmp_path / "other"))
    places["PRESET"] = preset
    values = {name: places.get(v, v) for name, v in values.items()}
    with pytest.raises(flags.UsageError, match=message):
        run(**{"format": "saved_model", **values})
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize("format", ["saved_model", "onnx"])
@pytest.mark.any_backend
def test_the_wrong_backend_says_which(format, run, tmp_path):
    if (format == "onnx") == ON_TORCH:
        pytest.skip("it is the right one")
    with pytest.raises(flags.UsageError, match="--format: .*KERAS_BACKEND="):
        run(format=format)
    assert not (tmp_path / "served").exists()


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "keras_switch_train.export"]
    result = subprocess.run(
        [*command, "--preset=.", "--output=a"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "--format must be given" in result.stderr
