"""LoRA on a model, through KerasHub's methods."""

import numpy as np
import pytest
from keras import ops

from keras_switch.models import SwitchSeq2SeqLM
from tests.models import generating, tiny

NAMES = ["query", "value", "wi", "wo"]


def values(weights):
    return {w.path: ops.convert_to_numpy(w).copy() for w in weights}


@pytest.fixture(scope="module")
def trained():
    """A model before and after some steps of its adapters."""
    rng = np.random.default_rng(7)
    lm, x = tiny.lm(), tiny.inputs(rng)
    before = tiny.logits(lm, x), values(lm.backbone.weights)
    lm.backbone.enable_lora(2, NAMES)
    lm.compile("adam")
    lm.optimizer.learning_rate = 0.05
    lm.fit(x, x["decoder_token_ids"], epochs=4, verbose=0)
    return lm, x, before


def test_only_adapters_are_trained(trained):
    lm, x, (logits, weights) = trained
    assert all("lora_kernel" in w.path for w in lm.trainable_weights)
    # Two of self-attention in four layers, two of cross-attention in two, and
    # two of each feed-forward.
    assert len(lm.trainable_weights) == 2 * (4 * 2 + 2 * 2 + 4 * 2)
    after = values(lm.backbone.weights)
    for path, value in weights.items():
        if "routing_stats" not in path:
            np.testing.assert_array_equal(after[path], value, err_msg=path)
    experts = [p for p in after if "experts" in p and "lora_kernel_b" in p]
    assert len(experts) == 4
    assert all(np.abs(after[path]).max() > 0 for path in experts)
    assert np.abs(tiny.logits(lm, x) - logits).max() > 0.1


def test_adapters_are_saved_apart(trained, tmp_path):
    lm, x, _ = trained
    path = str(tmp_path / "adapters.lora.h5")
    lm.backbone.save_lora_weights(path)
    other = tiny.lm()
    base = values(lm.backbone.weights)
    for weight in other.backbone.weights:
        weight.assign(base[weight.path])
    other.backbone.enable_lora(2, NAMES)
    other.backbone.load_lora_weights(path)
    np.testing.assert_allclose(
        tiny.logits(other, x), tiny.logits(lm, x), rtol=1e-5, atol=1e-5
    )


def test_a_preset_holds_them_merged(trained, tmp_path):
    lm, x, _ = trained
    lm.save_to_preset(str(tmp_path / "merged"))
    merged = SwitchSeq2SeqLM.from_preset(str(tmp_path / "merged"))
    assert not any("lora" in w.path for w in merged.weights)
    np.testing.assert_allclose(
        tiny.logits(merged, x), tiny.logits(lm, x), rtol=1e-3, atol=1e-3
    )


def test_generation_goes_by_the_adapters(trained, tmp_path):
    """A decode step takes rows of one expert in turn, by another product."""
    lm, x, _ = trained
    lm.save_to_preset(str(tmp_path / "merged"))
    merged = SwitchSeq2SeqLM.from_preset(str(tmp_path / "merged"))
    inputs = {name: array[:1] for name, array in x.items()}
    inputs["decoder_padding_mask"] = np.eye(1, 5, dtype="int32")
    found, wanted = (
        model.generate(inputs, stop_token_ids=None)["decoder_token_ids"]
        for model in (lm, merged)
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.any_backend
def test_adapters_and_norms_learn_a_batch_by_heart():
    """Without the norms' scales, the size of logits is frozen: with 16 units
    and tied embeddings the loss ends at 2, however good the adapters are."""
    lm, x = tiny.lm(dropout=0.0), tiny.inputs(np.random.default_rng(7))
    scales = [w for w in lm.trainable_weights if w.path.endswith("/scale")]
    lm.backbone.enable_lora(8, [*NAMES, "key", "output"])
    for weight in scales:
        weight.trainable = True
    lm.compile("adam", routing_metrics=None)
    lm.optimizer.learning_rate = 0.02
    fitted = lm.fit(x, x["decoder_token_ids"], epochs=80, verbose=0)
    loss = fitted.history["loss"]
    assert loss[0] > 3 and loss[-1] < 0.8, loss[::10]


def test_adapters_after_a_fit_want_a_new_compile(trained):
    del trained
    lm, x = tiny.lm(), tiny.inputs(np.random.default_rng(7))
    lm.fit(x, x["decoder_token_ids"], verbose=0)
    lm.backbone.enable_lora(2, NAMES)
    with pytest.raises(ValueError, match=r"compile\(\) again"):
        lm.fit(x, x["decoder_token_ids"], verbose=0)
    lm.compile()
    before = values(lm.backbone.weights)
    lm.fit(x, x["decoder_token_ids"], epochs=2, verbose=0)
    moved = {
        path
        for path, value in values(lm.backbone.weights).items()
        if (before[path] != value).any() and "routing_stats" not in path
    }
    assert moved == {
        w.path for w in lm.trainable_weights if "lora_kernel" in w.path
    }


def test_the_default_optimizer_moves_adapters():
    lm, x = tiny.lm(), tiny.inputs(np.random.default_rng(7))
    lm.backbone.enable_lora(2, NAMES)
    lm.fit(x, x["decoder_token_ids"], epochs=2, verbose=0)
    ends = [w for w in lm.trainable_weights if "lora_kernel_b" in w.path]
    assert all(np.abs(ops.convert_to_numpy(w)).max() > 0.01 for w in ends)


def test_generate_knows_adapters_that_came_later():
    lm = generating.lm(**generating.SPARSE)
    prompt = generating.prompts(np.random.default_rng(3), [1, 1, 1])
    before = lm.generate(prompt, stop_token_ids=None)["decoder_token_ids"]
    lm.backbone.enable_lora(4, NAMES)
    rng = np.random.default_rng(0)
    for weight in lm.trainable_weights:
        weight.assign(rng.normal(size=weight.shape))
    after = lm.generate(prompt, stop_token_ids=None)["decoder_token_ids"]
    assert (after != before).any()
