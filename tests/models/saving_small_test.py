"""Models made small, saved here and read on another backend."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_switch
from keras_switch import analysis, convert
from tests.models import tiny

# A process each: every backend is written on once and read on once.
NEXT = {"jax": "torch", "torch": "tensorflow", "tensorflow": "jax"}
SHAPE = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 1,
}
DENSE = {**SHAPE, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
ADAPTED = (2, ["query", "value", "wi", "wo"])
X = tiny.inputs(np.random.default_rng(3), batch_size=4)
READ = """
import sys
import numpy as np
import keras_switch
from tests.models import tiny
from tests.models.saving_small_test import ADAPTED, X

folder = sys.argv[1]
for name in sys.argv[2:]:
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(f"{folder}/{name}")
    if name == "base":
        lm.backbone.enable_lora(*ADAPTED)
        lm.backbone.load_lora_weights(f"{folder}/adapters.lora.h5")
    np.save(f"{folder}/{name}.npy", tiny.logits(lm, X))
"""


def fitted(model):
    model.compile(keras.optimizers.Adam(0.05))
    model.fit(X, X["decoder_token_ids"], epochs=2, verbose=0)
    return model


def distilled():
    teacher = tiny.lm(**SHAPE)
    student = tiny.lm(**DENSE)
    keras_switch.initialize_from_teacher(student, teacher)
    fitted(keras_switch.Distiller(teacher, student))
    return student


def quantized(mode):
    lm = tiny.lm(**SHAPE)
    lm.quantize(mode)
    return lm


def with_fewer_experts(make):
    lm = tiny.lm(**SHAPE)
    return make(lm, 2, analysis.routing_report(lm.backbone, [X]))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each model computes here and there, and without what it learned."""
    folder = tmp_path_factory.mktemp("small")
    keras.utils.set_random_seed(4)
    base = tiny.lm(**SHAPE)
    base.save_to_preset(str(folder / "base"))
    plain = tiny.logits(base, X)
    base.backbone.enable_lora(*ADAPTED)
    fitted(base).backbone.save_lora_weights(str(folder / "adapters.lora.h5"))
    models = {
        "int8": quantized("int8"),
        "int4": quantized("int4"),
        "merged_lora": base,
        "pruned": with_fewer_experts(convert.prune_experts),
        "merged": with_fewer_experts(convert.merge_experts),
        "distilled": distilled(),
    }
    for name, model in models.items():
        model.save_to_preset(str(folder / name))
    models["base"] = base
    # Keras quantizes what goes into int4 logits in a model that was loaded, and
    # not in one that has just been quantized.
    again = keras_switch.SwitchSeq2SeqLM.from_preset(str(folder / "int4"))
    models["int4"] = again
    here = {name: tiny.logits(lm, X) for name, lm in models.items()}
    assert np.abs(here["base"] - plain).max() > 0.1
    done = subprocess.run(
        [sys.executable, "-c", READ, str(folder), *models],
        env=os.environ | {"KERAS_BACKEND": NEXT[keras.backend.backend()]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: (logits, np.load(folder / f"{name}.npy"))
        for name, logits in here.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["base", "distilled", "int4", "int8", "merged", "merged_lora", "pruned"],
)
def test_another_backend_computes_the_same(name, outputs):
    """`base` is a model whose adapters lie apart."""
    here, there = outputs[name]
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)
