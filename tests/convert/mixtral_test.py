"""Mixtral of `transformers`: the same numbers in, and back out."""

import json

import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.models import SwitchCausalBackbone, SwitchCausalLM

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
from tests import sparing  # noqa: E402
from tests.convert import mixtral_models as hf  # noqa: E402
from tests.models import tiny  # noqa: E402


@pytest.fixture(
    scope="module", params=sparing.cases(hf.SHAPES, list(hf.SHAPES)[:1])
)
def pair(request, tmp_path_factory):
    """A model of `transformers`, and ours from its folder."""
    model = hf.mixtral(request.param)
    model.name = request.param
    folder = hf.save(model, tmp_path_factory.mktemp("hf"))
    return model, SwitchCausalLM.from_preset(str(folder))


def assert_same(lm, model, x, atol=1e-4):
    real = x["padding_mask"].astype(bool)
    wanted = hf.logits(model, x)[real]
    assert np.abs(wanted).max() > 1
    found = ops.convert_to_numpy(lm(x))[real]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol)


def test_same_logits(pair):
    model, lm = pair
    assert_same(lm, model, hf.inputs())
    router = lm.backbone.transformer_layers[0].feed_forward.router
    assert router.k == model.config.num_experts_per_tok


def test_same_logits_with_padding_on_the_left(pair):
    model, lm = pair
    x = {name: value[:, ::-1].copy() for name, value in hf.inputs().items()}
    assert_same(lm, model, x)


def test_same_greedy_tokens_of_prompts_of_unequal_lengths(pair):
    model, lm = pair
    x = hf.inputs()
    lm.compile(sampler="greedy")
    found = lm.generate(x, stop_token_ids=[2], max_new_tokens=8)
    for row, mask, ids, kept in zip(
        x["token_ids"],
        x["padding_mask"].astype(bool),
        found["token_ids"],
        found["padding_mask"],
        strict=True,
    ):
        wanted = hf.generate(model, row[mask], max_new_tokens=8)
        assert ids[kept].tolist() == wanted


def test_same_beams(pair):
    model, lm = pair
    if model.name != "mixtral":
        pytest.skip("one is enough: a beam does not know the model")
    x = {name: value[:1] for name, value in hf.inputs().items()}
    lm.compile(sampler=keras_switch.BeamSampler(3))
    found = lm.generate(x, stop_token_ids=[2], max_new_tokens=6)
    ids = found["token_ids"][0][found["padding_mask"][0]].tolist()
    wanted = hf.generate(
        model, x["token_ids"][0], max_new_tokens=6, num_beams=3
    )
    assert ids == wanted


def test_and_back(pair, tmp_path):
    model, lm = pair
    lm.export_to_transformers(tmp_path / "out")
    again = hf.transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out"
    ).eval()
    x = hf.inputs()
    np.testing.assert_allclose(
        hf.logits(again, x), hf.logits(model, x), rtol=1e-5, atol=1e-5
    )
    kept = ("num_hidden_layers", "num_key_value_heads", "num_experts_per_tok")
    for name in (*kept, "hidden_act", "rope_parameters", "eos_token_id"):
        assert getattr(again.config, name) == getattr(model.config, name)


def test_shards_and_half_precision(tmp_path):
    model = hf.mixtral().to(hf.torch.bfloat16)
    hf.save(model, tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    backbone = SwitchCausalBackbone.from_preset(str(tmp_path))
    assert backbone.dtype == "float32"
    wanted = model.lm_head.weight.detach().float().numpy()
    kernel = backbone.token_embedding.reverse_embeddings
    np.testing.assert_array_equal(ops.convert_to_numpy(kernel), wanted.T)


def test_a_file_of_version_4(tmp_path):
    """`rope_theta` stood beside the others, as it does on the hub."""
    model = hf.mixtral("another base")
    hf.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"]
    config["rope_theta"] = 100.0
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(SwitchCausalLM.from_preset(str(tmp_path)), model, hf.inputs())


def test_arguments_override_and_a_tokenizer_is_not_looked_for(tmp_path):
    hf.save(hf.mixtral(), tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    preprocessor = tiny.causal_preprocessor()
    lm = SwitchCausalLM.from_preset(
        str(tmp_path), dispatch="gather", preprocessor=preprocessor
    )
    assert lm.backbone.dispatch == "gather"
    assert lm.preprocessor is preprocessor
    lm = keras_switch.convert.load(tmp_path)
    assert type(lm) is SwitchCausalLM and lm.preprocessor is None


def test_a_task_with_an_encoder_is_refused(tmp_path):
    hf.save(hf.mixtral(), tmp_path)
    with pytest.raises(ValueError, match="holds a SwitchCausalBackbone"):
        keras_switch.SwitchBackbone.from_preset(str(tmp_path))
    with pytest.raises(ValueError, match="holds a SwitchCausalBackbone"):
        keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path))


def test_a_tensor_that_is_missing(tmp_path):
    from safetensors.numpy import load_file, save_file

    hf.save(hf.mixtral(), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(keras_switch.CheckpointError) as caught:
        SwitchCausalBackbone.from_preset(str(tmp_path))
    assert caught.value.field == name


def test_our_tokens_are_written_with_our_tokenizer(tmp_path):
    lm = tiny.causal_lm(
        router=keras_switch.TopKRouter(second_policy="all"),
        preprocessor=tiny.causal_preprocessor(),
    )
    lm.export_to_transformers(tmp_path / "out")
    generation = json.loads(
        (tmp_path / "out" / "generation_config.json").read_text()
    )
    assert generation == {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
