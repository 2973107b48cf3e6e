"""Presets: written here, read here, and read by other processes."""

import os
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_switch.models import (
    SwitchBackbone,
    SwitchSeq2SeqLM,
    SwitchSeq2SeqLMPreprocessor,
)
from tests.models import tiny

ARGUMENTS = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
    "router": "top_k",
    "decoder_router": "switch",
    "tie_embedding_weights": False,
}
X = tiny.inputs(np.random.default_rng(3))


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(2)
    return tiny.lm(preprocessor=tiny.preprocessor(), **ARGUMENTS)


@pytest.fixture(scope="module")
def preset(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("preset")
    lm.save_to_preset(str(folder))
    np.savez(folder / "logits.npz", logits=tiny.logits(lm, X))
    return str(folder)


def assert_equal_weights(model, other):
    assert len(model.weights) == len(other.weights)
    for a, b in zip(model.weights, other.weights, strict=True):
        if "routing_stats" in a.path:
            continue
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), a.path
        )


@pytest.mark.parametrize("cls", [SwitchSeq2SeqLM, keras_hub.models.Seq2SeqLM])
def test_a_task_round_trips_also_through_keras_hub(cls, lm, preset):
    again = cls.from_preset(preset)
    assert type(again) is SwitchSeq2SeqLM
    assert type(again.preprocessor) is SwitchSeq2SeqLMPreprocessor
    assert again.preprocessor.encoder_sequence_length == 8
    assert again.preprocessor.built
    assert_equal_weights(lm.backbone, again.backbone)


@pytest.mark.parametrize("cls", [SwitchBackbone, keras_hub.models.Backbone])
def test_a_backbone_round_trips_also_through_keras_hub(cls, lm, preset):
    again = cls.from_preset(preset)
    assert type(again) is SwitchBackbone
    assert_equal_weights(lm.backbone, again)


def test_a_restored_task_generates_the_same(lm, preset):
    again = SwitchSeq2SeqLM.from_preset(preset)
    text = ["the <extra_id_0> walks"]
    assert again.generate(text, max_length=6) == lm.generate(text, max_length=6)


def test_options_of_loading(preset):
    random = SwitchSeq2SeqLM.from_preset(preset, load_weights=False)
    kernel = random.backbone.encoder_transformer_layers[0].feed_forward
    assert kernel.router.k == 2
    half = SwitchSeq2SeqLM.from_preset(preset, dtype="bfloat16")
    assert half.backbone.compute_dtype == "bfloat16"
    bare = SwitchSeq2SeqLM.from_preset(preset, preprocessor=None)
    assert bare.preprocessor is None
    with pytest.raises(ValueError, match="has no argument dropuot"):
        SwitchSeq2SeqLM.from_preset(preset, dropuot=0.3)
    with pytest.raises(ValueError, match="has no argument num_experts"):
        SwitchSeq2SeqLM.from_preset(preset, num_experts=8)


def test_weights_in_shards(lm, tmp_path):
    lm.backbone.save_to_preset(str(tmp_path), max_shard_size=2e-5)
    assert (tmp_path / "model.weights.json").exists()
    again = SwitchBackbone.from_preset(str(tmp_path))
    assert_equal_weights(lm.backbone, again)


def test_a_quantized_task_loads_and_is_close(lm, preset, tmp_path):
    quantized = SwitchSeq2SeqLM.from_preset(preset)
    quantized.quantize("int8")
    kernels = [w for w in quantized.weights if w.path.endswith("wi/kernel")]
    assert [keras.backend.standardize_dtype(w.dtype) for w in kernels] == [
        "int8"
    ] * len(kernels)
    logits = tiny.logits(quantized, X)
    assert_close(logits, tiny.logits(lm, X), 0.1)
    quantized.save_to_preset(str(tmp_path))
    again = SwitchSeq2SeqLM.from_preset(str(tmp_path))
    np.testing.assert_allclose(tiny.logits(again, X), logits, atol=1e-5)
    text = again.generate("the <extra_id_0> walks", max_length=4)
    assert isinstance(text, str)


def assert_close(a, b, tolerance):
    assert np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) < tolerance


READ = """
import sys
if {without_tensorflow}:
    for name in ("tensorflow", "tensorflow_text"):
        sys.modules[name] = None
import numpy as np
import keras_hub
import keras_switch
from keras_switch.models import SwitchSeq2SeqLM
from tests.models import tiny

lm = keras_hub.models.Seq2SeqLM.from_preset({preset!r})
assert type(lm) is SwitchSeq2SeqLM
logits = tiny.logits(lm, tiny.inputs(np.random.default_rng(3)))
wanted = np.load({preset!r} + "/logits.npz")["logits"]
np.testing.assert_allclose(logits, wanted, atol=1e-5)
if {without_tensorflow}:
    text = {{
        "encoder_text": ["the <extra_id_0> walks"] * 4,
        "decoder_text": ["<extra_id_0> man"] * 4,
    }}
    loss = lm.fit(text, batch_size=2, verbose=0).history["loss"][0]
    assert np.isfinite(loss)
    result = lm.generate(text["encoder_text"], max_length=4)
    assert len(result) == 4 and isinstance(result[0], str)
    one = lm.generate(text["encoder_text"][0], max_length=4, strip_prompt=True)
    assert isinstance(one, str)
    assert sys.modules["tensorflow"] is None
print("done")
"""


def read(preset, backend, without_tensorflow):
    code = READ.format(preset=preset, without_tensorflow=without_tensorflow)
    environment = {**os.environ, "KERAS_BACKEND": backend}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    assert "done" in result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_a_preset_loads_on_the_other_backends(backend, preset):
    if backend == keras.backend.backend():
        pytest.skip("the backend that wrote the preset")
    read(preset, backend, without_tensorflow=False)


@pytest.mark.slow
def test_all_works_without_tensorflow(preset):
    if keras.backend.backend() == "tensorflow":
        pytest.skip("TensorFlow is the backend")
    read(preset, keras.backend.backend(), without_tensorflow=True)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_a_mixed_policy_loads_in_the_default_one(tmp_path, dtype):
    tiny.lm(dtype=dtype).save_to_preset(tmp_path)
    for cls in (SwitchSeq2SeqLM, SwitchBackbone):
        again = cls.from_preset(str(tmp_path))
        assert again.dtype_policy.name == keras.config.dtype_policy().name
    again = SwitchBackbone.from_preset(str(tmp_path), dtype=dtype)
    assert again.dtype_policy.name == dtype
