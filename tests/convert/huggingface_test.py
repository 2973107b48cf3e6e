"""Checkpoints of `transformers`: the same numbers in, and back out."""

import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.convert.huggingface import load_backbone

pytest.importorskip("transformers")
pytest.importorskip("safetensors")
from tests.convert import huggingface_models as hf  # noqa: E402

NAMES = (*hf.SWITCH, *hf.T5)
# Ours, and the arguments of `transformers` that say the same.
SAMPLERS = {
    "greedy": ("greedy", {}),
    "beam": (keras_switch.BeamSampler(3), {"num_beams": 3}),
    "beam, sums": (
        keras_switch.BeamSampler(4, length_penalty=0.0),
        {"num_beams": 4, "length_penalty": 0.0},
    ),
}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """A model of `transformers`, and ours from its folder."""
    model = hf.any_model(request.param)
    model.is_base = request.param == "base"
    folder = hf.save(model, tmp_path_factory.mktemp("hf"))
    return model, keras_switch.SwitchSeq2SeqLM.from_preset(str(folder))


def ours(lm, x):
    """Encoder output and logits."""
    encoder = lm.backbone(x)["encoder_sequence_output"]
    return ops.convert_to_numpy(encoder), ops.convert_to_numpy(lm(x))


def assert_same(lm, model, x):
    encoder, logits = ours(lm, x)
    wanted_encoder, wanted_logits = hf.outputs(model, x)
    real = x["encoder_padding_mask"].astype(bool)
    np.testing.assert_allclose(
        encoder[real], wanted_encoder[real], rtol=0, atol=1e-4
    )
    real = x["decoder_padding_mask"].astype(bool)
    np.testing.assert_allclose(
        logits[real], wanted_logits[real], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("left", [False, True])
def test_same_outputs(pair, left):
    model, lm = pair
    assert_same(lm, model, hf.inputs(left=left))


@pytest.mark.parametrize(
    ("sampler", "left"),
    [
        ("greedy", False),
        ("beam", False),
        ("greedy", True),
        ("beam", True),
        ("beam, sums", False),
    ],
)
def test_same_sequences(pair, sampler, left):
    model, lm = pair
    if not model.is_base and (left or sampler == "beam, sums"):
        pytest.skip("each is compiled: one model is enough")
    x = hf.inputs(left=left)
    sampler, arguments = SAMPLERS[sampler]
    wanted = hf.generate(model, x, max_new_tokens=9, **arguments)
    x["decoder_token_ids"] = np.zeros((3, 10), "int32")
    x["decoder_padding_mask"] = np.eye(1, 10, dtype="int32").repeat(3, 0)
    lm.compile(sampler=sampler)
    outputs = lm.generate(x, stop_token_ids=[1])
    ids = ops.convert_to_numpy(outputs["decoder_token_ids"])
    mask = ops.convert_to_numpy(outputs["decoder_padding_mask"])
    for row, kept, other in zip(ids, mask.astype(bool), wanted, strict=True):
        mine = row[kept].tolist()
        assert mine == other[: len(mine)].tolist()
        assert set(other[len(mine) :]) <= {0, 1}  # beams end with </s>


def test_and_back(pair, tmp_path):
    model, lm = pair
    folder = tmp_path / "out"
    lm.export_to_transformers(folder)
    again = hf.load(folder)
    assert_same(lm, again, hf.inputs())
    config = again.config.to_dict()
    kept = ("num_layers", "num_heads", "d_kv", "d_ff", "dropout_rate")
    assert {n: config[n] for n in kept} == {
        n: model.config.to_dict()[n] for n in kept
    }


@pytest.mark.parametrize("capacity", [1, 2])
def test_same_drops(tmp_path, capacity):
    model = hf.switch("base", expert_capacity=capacity)
    hf.save(model, tmp_path)
    x = hf.inputs()
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(
        str(tmp_path), capacity="checkpoint"
    )
    assert lm.backbone.capacity == capacity
    assert_same(lm, model, x)
    # And they are drops: without the capacity the numbers are others.
    dropless = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path))
    with pytest.raises(AssertionError):
        assert_same(dropless, model, x)


def test_export_keeps_the_capacity(tmp_path):
    hf.save(hf.switch(), tmp_path / "in")
    backbone = load_backbone(tmp_path / "in", capacity=3)
    backbone.export_to_transformers(tmp_path / "out")
    again = hf.transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert again.expert_capacity == 3


@pytest.mark.parametrize("way", ["pruned", "extracted"])
def test_what_was_made_smaller_goes_out(way, tmp_path):
    hf.save(hf.switch(), tmp_path / "in")
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path / "in"))
    report = keras_switch.analysis.routing_report(lm.backbone, [hf.inputs(1)])
    if way == "pruned":
        small = keras_switch.convert.prune_experts(lm, 2, report)
    else:
        small = keras_switch.convert.extract_dense(lm, report)
    small.export_to_transformers(tmp_path / "out")
    again = hf.load(tmp_path / "out")
    assert_same(small, again, hf.inputs())
    count = sum(values.numel() for values in again.parameters())
    assert count < sum(w.numel() for w in hf.load(tmp_path / "in").parameters())
    # Experts less make other numbers.
    with pytest.raises(AssertionError):
        assert_same(lm, again, hf.inputs())


def test_shards_in_and_out(tmp_path):
    model = hf.switch()
    hf.save(model, tmp_path / "in", max_shard_size="20KB")
    assert (tmp_path / "in" / "model.safetensors.index.json").is_file()
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path / "in"))
    assert_same(lm, model, hf.inputs())
    keras_switch.convert.export_to_transformers(
        lm, tmp_path / "out", max_shard_bytes=20_000
    )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    again = hf.load(tmp_path / "out")
    assert_same(lm, again, hf.inputs())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files(tmp_path, dtype):
    model = hf.switch().to(getattr(hf.torch, dtype))
    hf.save(model, tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.dtype == "float32"
    wanted = model.shared.weight.detach().float().numpy()
    embeddings = backbone.token_embedding.embeddings
    np.testing.assert_array_equal(ops.convert_to_numpy(embeddings), wanted)


def test_arguments_override(tmp_path):
    hf.save(hf.switch(), tmp_path)
    backbone = load_backbone(tmp_path, dropout=0.3, dtype="bfloat16")
    assert backbone.dropout == 0.3
    assert backbone.compute_dtype == "bfloat16"
    with pytest.raises(ValueError, match="no argument dropuot"):
        load_backbone(tmp_path, dropuot=0.3)


def test_without_weights(tmp_path):
    hf.save(hf.switch(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    backbone = keras_switch.SwitchBackbone.from_preset(
        str(tmp_path), load_weights=False
    )
    assert backbone.num_experts == 4


def test_settings_of_the_router_travel(tmp_path):
    model = hf.switch(
        router_jitter_noise=0.07,
        router_aux_loss_coef=0.02,
        router_z_loss_coef=0.003,
    )
    hf.save(model, tmp_path / "in")
    backbone = load_backbone(tmp_path / "in")
    router = backbone.encoder_transformer_layers[1].feed_forward.router
    assert router.jitter == 0.07
    assert router.load_balancing_loss_weight == 0.02
    assert router.z_loss_weight == 0.003
    backbone.export_to_transformers(tmp_path / "out")
    again = hf.transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert again.router_jitter_noise == 0.07
    assert again.router_aux_loss_coef == 0.02
    assert again.router_z_loss_coef == 0.003


def test_untied_t5_with_logits_of_its_own(tmp_path):
    """As Flan-T5 lies on the hub: `lm_head.weight`, not tied."""
    import json

    from safetensors.numpy import load_file, save_file

    hf.save(hf.t5("t5 gated unscaled"), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(60, 16)).astype("float32")
    tensors["lm_head.weight"] = logits
    save_file(tensors, tmp_path / "model.safetensors")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["scale_decoder_outputs"]
    config["tie_word_embeddings"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    lm = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path))
    kernel = lm.backbone.token_embedding.reverse_embeddings
    np.testing.assert_array_equal(ops.convert_to_numpy(kernel), logits.T)
    x = hf.inputs()
    states = ops.convert_to_numpy(lm.backbone(x)["decoder_sequence_output"])
    np.testing.assert_allclose(
        ops.convert_to_numpy(lm(x)), states @ logits.T, atol=1e-4
    )


def test_a_hub_handle(tmp_path, monkeypatch):
    """The calls to the hub's client, answered by a local folder."""
    hub = pytest.importorskip("huggingface_hub")
    hf.save(hf.switch(), tmp_path)
    calls = []

    class Api:
        def model_info(self, name, revision=None):
            calls.append(("info", name, revision))
            return type("Info", (), {"sha": "a1b2"})

    def one_file(name, file, revision=None):
        calls.append(("file", name, file, revision))
        return str(tmp_path / file)

    def snapshot(name, revision=None, allow_patterns=None):
        calls.append(("all", name, revision))
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(hub, "HfApi", Api)
    monkeypatch.setattr(hub, "hf_hub_download", one_file)
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    lm = keras_switch.SwitchSeq2SeqLM.from_preset("hf://org/name@main")
    assert lm.backbone.num_experts == 4
    assert calls == [
        ("info", "org/name", "main"),
        ("file", "org/name", "config.json", "a1b2"),
        ("all", "org/name", "a1b2"),
    ]


class TestRefusals:
    """What `transformers` cannot represent is not written."""

    def refuse(self, tmp_path, match, **arguments):
        from tests.models import tiny

        folder = tmp_path / "out"
        with pytest.raises(ValueError, match=match):
            tiny.backbone(**arguments).export_to_transformers(folder)
        assert not folder.exists()
        assert not list(tmp_path.iterdir())

    def test_gated_experts(self, tmp_path):
        self.refuse(tmp_path, "no gated form", activation="gated-gelu")

    def test_a_dense_layer_beside_a_sparse_one(self, tmp_path):
        match = "extra_feed_forward must be False"
        self.refuse(tmp_path, match, extra_feed_forward=True)

    def test_shared_experts(self, tmp_path):
        match = "num_shared_experts must be 0"
        self.refuse(tmp_path, match, num_shared_experts=1)
        self.refuse(tmp_path, "expert_blocks must be 1", expert_blocks=2)

    def test_another_router(self, tmp_path):
        router = keras_switch.TopKRouter(k=2)
        self.refuse(tmp_path, "router must be top-1", router=router)
        router = keras_switch.convert.UnitGateRouter()  # a SwitchRouter
        self.refuse(tmp_path, "router must be top-1", router=router)

    def test_capacity_by_factor(self, tmp_path):
        match = "eval_capacity_factor=2.0"
        self.refuse(tmp_path, match, eval_capacity_factor=2.0)

    def test_sparse_layers_it_cannot_count(self, tmp_path):
        self.refuse(
            tmp_path,
            r"one of \[\], \[0, 1\], \[1\]; received \[0\]",
            encoder_sparse_step=[0],
        )

    def test_another_activation(self, tmp_path):
        self.refuse(
            tmp_path,
            "activation",
            activation="silu",
            encoder_sparse_step=0,
            decoder_sparse_step=0,
        )

    def test_a_folder_that_holds_something(self, tmp_path):
        from tests.models import tiny

        (tmp_path / "mine.txt").write_text("mine")
        with pytest.raises(FileExistsError, match="must not exist"):
            tiny.backbone().export_to_transformers(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
