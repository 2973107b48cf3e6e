"""Decoder-only models in presets and in `.keras` files."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_switch
from keras_switch.files import CheckpointError
from keras_switch.models import (
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchCausalLMPreprocessor,
    SwitchSeq2SeqLM,
    SwitchTokenizer,
)
from tests import sparing
from tests.models import tiny


@pytest.fixture(
    scope="module", params=sparing.cases(tiny.FAMILIES, ("mixtral",))
)
def saved(request, tmp_path_factory):
    router = keras_switch.TopKRouter(k=2, second_policy="all")
    preprocessor = tiny.causal_preprocessor(add_end_token=False)
    lm = tiny.causal_lm(request.param, preprocessor, router=router)
    folder = tmp_path_factory.mktemp("presets") / request.param
    lm.save_to_preset(folder)
    return lm, str(folder)


def logits(lm, rng):
    return SwitchCausalLM(lm.backbone).predict_on_batch(tiny.causal_inputs(rng))


@pytest.mark.parametrize("cls", [SwitchCausalLM, keras_hub.models.CausalLM])
def test_a_task_comes_back_through_either_door(saved, cls, rng):
    lm, folder = saved
    again = cls.from_preset(folder)
    assert type(again) is SwitchCausalLM
    assert again.backbone.get_config() == lm.backbone.get_config()
    assert again.preprocessor.sequence_length == 10
    assert again.preprocessor.add_end_token is False
    seed = rng.bit_generator.state
    wanted = logits(lm, rng)
    rng.bit_generator.state = seed
    np.testing.assert_array_equal(logits(again, rng), wanted)


def test_its_parts_come_back(saved):
    lm, folder = saved
    assert type(keras_hub.models.Backbone.from_preset(folder)) is (
        SwitchCausalBackbone
    )
    preprocessor = SwitchCausalLMPreprocessor.from_preset(
        folder, sequence_length=5
    )
    assert preprocessor.sequence_length == 5
    tokenizer = SwitchTokenizer.from_preset(folder)
    found, wanted = tokenizer("the dog"), lm.preprocessor.tokenizer("the dog")
    np.testing.assert_array_equal(found, wanted)
    half = SwitchCausalLM.from_preset(folder, dtype="bfloat16")
    assert half.backbone.compute_dtype == "bfloat16"


def test_a_task_of_another_kind_is_refused(saved):
    _, folder = saved
    with pytest.raises(CheckpointError, match="SwitchSeq2SeqLM"):
        SwitchSeq2SeqLM.from_preset(folder)


def test_a_field_of_another_kind_is_refused(tmp_path):
    import json

    tiny.causal_backbone().save_to_preset(tmp_path)
    (tmp_path / "manifest.json").unlink()
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["config"]["num_encoder_layers"] = 2
    path.write_text(json.dumps(config))
    with (
        pytest.warns(UserWarning, match="unverified"),
        pytest.raises(CheckpointError, match="num_encoder_layers"),
    ):
        SwitchCausalBackbone.from_preset(tmp_path, allow_unverified=True)


def test_a_saved_model_keeps_its_optimizer_and_how_it_was_compiled(
    rng, tmp_path
):
    lm = tiny.causal_lm()
    lm.compile(
        keras.optimizers.Adam(0.5),
        sampler=keras_hub.samplers.TopKSampler(k=3),
        z_loss_weight=0.25,
    )
    x = tiny.causal_inputs(rng)
    lm.train_on_batch(x, x["token_ids"])
    path = str(tmp_path / "lm.keras")
    lm.save(path)
    again = keras.saving.load_model(path)
    assert type(again) is SwitchCausalLM
    assert again.sampler.k == 3
    assert again.get_compile_config() == lm.get_compile_config()
    assert int(again.optimizer.iterations) == 1
    np.testing.assert_array_equal(
        again.predict_on_batch(x), lm.predict_on_batch(x)
    )
