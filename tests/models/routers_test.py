"""Whole models with each router: training, files, cached decoding."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch import SwitchBackbone, analysis
from keras_switch.layers import HashRouter, hash_tables
from keras_switch.layers.routers import ROUTERS, get_router
from tests import sparing
from tests.models import generating, tiny
from tests.models.decoding_test import full_pass

CAUSAL = [name for name in ROUTERS if get_router(name, 4).causal]
# With weights or routes unlike the others'.
PECULIAR = ("hash", "loss_free", "base", "soft")
# A table of the model's own size.
OBJECTS = {"hash": HashRouter(vocabulary_size=tiny.VOCABULARY)}


def small(name, **arguments):
    """All layers sparse; the decoder's route alike, where they can."""
    decoder = None if name in CAUSAL else "switch"
    router = OBJECTS.get(name, name)
    arguments = {"decoder_router": decoder, **arguments}
    return generating.lm(router=router, **generating.SPARSE, **arguments)


@pytest.mark.parametrize("name", sparing.cases(ROUTERS, PECULIAR))
def test_it_trains_and_only_what_is_to_be_trained(name, rng):
    lm = small(name)
    x = tiny.inputs(rng)
    frozen = [
        w for w in lm.backbone.non_trainable_weights if "/router/k" in w.path
    ]
    trained = lm.backbone.trainable_weights
    before = [ops.convert_to_numpy(w).copy() for w in [*frozen, *trained]]
    lm.compile(keras.optimizers.SGD(0.1), sampler="greedy")
    y = x["decoder_token_ids"]
    for _ in range(2):
        loss = lm.train_on_batch(x, y, sample_weight=x["decoder_padding_mask"])
    assert np.isfinite(loss[0] if isinstance(loss, list) else loss)
    after = [ops.convert_to_numpy(w) for w in [*frozen, *trained]]
    for weight, a, b in zip([*frozen, *trained], before, after, strict=True):
        if any(weight is w for w in frozen):
            np.testing.assert_array_equal(a, b, weight.path)
        elif "/router/" in weight.path:
            assert (a != b).any(), weight.path


@pytest.mark.parametrize("name", sparing.cases(CAUSAL, ("hash", "random")))
def test_cached_decoding_is_a_full_pass(name, rng):
    lm = small(name)
    lm.compile(sampler="greedy")
    x = generating.prompts(rng, (2, 1), width=6)
    ids = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    logits, _ = full_pass(lm, x, ids)
    for row, length in enumerate((2, 1)):
        best = logits[row, length - 1 : -1].argmax(-1)
        np.testing.assert_array_equal(ids[row, length:], best)
    assert len(set(ids.ravel())) > 3


@pytest.mark.parametrize("name", sparing.cases(CAUSAL, ("base",)))
def test_later_tokens_change_nothing_in_evaluation(name, rng):
    lm = small(name)
    x = tiny.inputs(rng, batch_size=1, decoder_length=6)
    first = lm.predict_on_batch(x)
    x["decoder_token_ids"][:, 3:] = rng.integers(3, 150, (1, 3))
    second = lm.predict_on_batch(x)
    np.testing.assert_allclose(
        first[:, :3], second[:, :3], rtol=1e-5, atol=1e-5
    )
    assert np.abs(first[:, 3:] - second[:, 3:]).max() > 1e-2


@pytest.mark.parametrize("name", sorted(set(ROUTERS) - set(CAUSAL)))
def test_a_decoder_refuses_what_sees_later_tokens(name):
    with pytest.raises(
        ValueError, match="decoder_router must be causal in a d"
    ):
        tiny.backbone(router=name)
    with pytest.raises(
        ValueError, match="decoder_router must be causal in a d"
    ):
        tiny.backbone(decoder_router=name)


@pytest.mark.parametrize("name", sparing.cases(ROUTERS, ("hash",)))
def test_a_preset_holds_it(name, rng, tmp_path):
    backbone = small(name).backbone
    layers = analysis.sparse_layers(backbone).values()
    for router in (layer.router for layer in layers):
        if hasattr(router, "bias"):  # of another choice than without it
            router.bias.assign(np.array([0.4, -0.4, 0.2, 0.0]))
    backbone.save_to_preset(tmp_path / "preset")
    again = SwitchBackbone.from_preset(tmp_path / "preset")
    x = tiny.inputs(rng)
    first, second = (m.predict_on_batch(x) for m in (backbone, again))
    for key, value in first.items():
        np.testing.assert_allclose(second[key], value, rtol=1e-6, err_msg=key)


def test_a_hash_table_of_a_corpus_is_kept(rng, tmp_path):
    lm = small("hash")
    counts = rng.integers(0, 1000, tiny.VOCABULARY)
    table = hash_tables.balanced_table(counts, 4)
    layers = analysis.sparse_layers(lm.backbone)
    for layer in layers.values():
        layer.router.assign_table(table)
    lm.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for layer in analysis.sparse_layers(again.backbone).values():
        kept = ops.convert_to_numpy(layer.router.table)
        np.testing.assert_array_equal(kept, table)
    # Each token is where the table says, in both stacks.
    x = {**tiny.inputs(rng), "encoder_padding_mask": np.ones((2, 7), "int32")}
    report = analysis.routing_report(again.backbone, [x])
    assert {found.name for found in report.layers} == set(layers)
    for found in report.layers:
        experts = found.token_share.argmax(-1)
        np.testing.assert_array_equal(experts, table[0, found.token_ids])
        assert found.token_entropy == 0
