import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch import analysis
from keras_switch.convert import (
    extract_dense,
    merge_experts,
    prune_experts,
)
from tests.models import tiny


def numpy(variable):
    return ops.convert_to_numpy(variable)


def weights(model):
    return {w.path: numpy(w) for w in model.backbone.weights}


def report_of(lm, x):
    return analysis.routing_report(lm.backbone, [x])


@pytest.fixture
def lm():
    return tiny.lm(eval_capacity_factor=None)


@pytest.fixture
def x(rng):
    return tiny.inputs(rng, batch_size=6)


def most_used(report, count):
    return {
        layer.name: np.sort(np.argsort(-layer.load, kind="stable")[:count])
        for layer in report.layers
    }


def test_the_most_used_experts_are_kept(lm, x):
    report = report_of(lm, x)
    small = prune_experts(lm, 2, report)
    assert small.backbone.num_experts == 2
    old, new = weights(lm), weights(small)
    assert set(new) == set(old)
    for name, kept in most_used(report, 2).items():
        path = f"{name}/feed_forward/experts/wi/kernel"
        np.testing.assert_array_equal(new[path], old[path][kept])
        path = f"{name}/feed_forward/router/kernel"
        np.testing.assert_array_equal(new[path], old[path][:, kept])
    path = "token_embedding/embeddings"
    np.testing.assert_array_equal(new[path], old[path])


def test_experts_that_nobody_uses_are_pruned_for_free(lm, x):
    """With the others' columns far below, softmax leaves them nothing."""
    for layer in analysis.sparse_layers(lm.backbone).values():
        kernel = numpy(layer.router.kernel).copy()
        layer.router.kernel.assign(np.concatenate([kernel[:, :1]] * 4, 1))
    report = report_of(lm, x)
    assert all(layer.load[0] == 1.0 for layer in report.layers)
    # The gate was 1 of 4 equal ones, and is 1 of 1.
    small = prune_experts(lm, 1, report)
    dense = extract_dense(lm, report)
    wanted = tiny.logits(lm, x)
    assert np.abs(tiny.logits(small, x) - wanted).max() > 1e-2
    real = x["decoder_padding_mask"] > 0  # a dense layer computes padding
    np.testing.assert_allclose(
        tiny.logits(dense, x)[real], wanted[real], rtol=1e-4, atol=1e-4
    )


def test_a_dense_model_is_scaled_by_the_mean_gate(lm, x):
    report = report_of(lm, x)
    dense = extract_dense(lm, report)
    assert not analysis.sparse_layers(dense.backbone)
    old, new = weights(lm), weights(dense)
    layer = report.layers[0]
    expert = int(layer.load.argmax())
    stem = f"{layer.name}/feed_forward"
    np.testing.assert_array_equal(
        new[f"{stem}/wi/kernel"], old[f"{stem}/experts/wi/kernel"][expert]
    )
    gate = layer.mean_gate[expert]
    assert 0.25 <= gate <= 1
    np.testing.assert_allclose(
        new[f"{stem}/wo/kernel"],
        gate * old[f"{stem}/experts/wo/kernel"][expert],
        rtol=1e-5,
    )


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_twins_whose_units_are_in_another_order_merge_to_one(
    x, activation, rng
):
    lm = tiny.lm(activation=activation)
    for layer in analysis.sparse_layers(lm.backbone).values():
        order = rng.permutation(layer.intermediate_dim)
        router = numpy(layer.router.kernel).copy()
        router[:, 2:] = router[:, :2]
        layer.router.kernel.assign(router)
        for dense in (*layer.experts._wi, layer.experts.wo):
            kernel = numpy(dense.kernel).copy()
            axis = 0 if dense is layer.experts.wo else 1
            kernel[2:] = np.take(kernel[:2], order, axis=axis + 1)
            dense.kernel.assign(kernel)
    merged = merge_experts(lm, 2, report_of(lm, x))
    # Each gate was half as much, as twins shared it: not the kernels.
    old, new = weights(lm), weights(merged)
    for name in analysis.sparse_layers(merged.backbone):
        for path in old:
            if path.startswith(f"{name}/feed_forward/experts"):
                np.testing.assert_allclose(
                    np.sort(new[path], axis=None),
                    np.sort(old[path][:2], axis=None),
                    rtol=1e-4,
                    atol=1e-6,
                )


def test_merging_is_a_mean_by_load(lm, x):
    report = report_of(lm, x)
    merged = merge_experts(lm, 1, report)
    old, new = weights(lm), weights(merged)
    layer = report.layers[0]
    head = int(layer.load.argmax())
    stem = f"{layer.name}/feed_forward/experts/"
    # The sums over hidden units do not depend on their order.
    wanted = np.tensordot(layer.load, old[f"{stem}wi/kernel"].sum(-1), 1)
    np.testing.assert_allclose(
        new[f"{stem}wi/kernel"][0].sum(-1), wanted, rtol=1e-4, atol=1e-5
    )
    assert layer.load[head] < 1


def test_a_pruned_task_is_saved_and_loads(x, tmp_path):
    lm = tiny.lm(tiny.preprocessor())
    small = prune_experts(lm, 2, report_of(lm, x))
    small.save_to_preset(str(tmp_path / "small"))
    again = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path / "small"))
    np.testing.assert_allclose(
        tiny.logits(again, x), tiny.logits(small, x), rtol=1e-5, atol=1e-5
    )
    assert isinstance(small.generate("dogs", max_length=4), str)


def test_a_decoder_alone(rng):
    lm = tiny.causal_lm("mixtral")
    report = analysis.routing_report(lm.backbone, [tiny.causal_inputs(rng)])
    small = prune_experts(lm, 2, report)
    assert small.backbone.num_experts == 2
    assert not analysis.sparse_layers(extract_dense(lm, report).backbone)


def test_what_cannot_be_pruned_is_refused(lm, x):
    report = report_of(lm, x)
    with pytest.raises(ValueError, match="less than the model's"):
        prune_experts(lm, 4, report)
    with pytest.raises(ValueError, match="report must be of this model"):
        prune_experts(tiny.lm(num_experts=5), 2, report)
    with pytest.raises(ValueError, match="must have a sparse layer"):
        dense = tiny.lm(encoder_sparse_step=0, decoder_sparse_step=0)
        extract_dense(dense, report)
    hashed = tiny.lm(router=keras_switch.HashRouter(vocabulary_size=150))
    with pytest.raises(ValueError, match="table of experts"):
        prune_experts(hashed, 2, report)
    wide = tiny.causal_lm("glam", expert_intermediate_dim=8)
    with pytest.raises(ValueError, match="expert_intermediate_dim"):
        extract_dense(
            wide,
            analysis.routing_report(
                wide.backbone, [tiny.causal_inputs(np.random.default_rng(1))]
            ),
        )
    lm.backbone.enable_lora(2, ["wo"])
    with pytest.raises(ValueError, match="adapters must be merged"):
        prune_experts(lm, 2, report)


def test_stacks_are_pruned_but_neither_merged_nor_made_dense(x):
    lm = tiny.lm(eval_capacity_factor=None, expert_blocks=2)
    report = report_of(lm, x)
    old, new = weights(lm), weights(prune_experts(lm, 2, report))
    for name, kept in most_used(report, 2).items():
        path = f"{name}/feed_forward/experts/block_1/wo/kernel"
        np.testing.assert_array_equal(new[path], old[path][kept])
    for refuses in (
        lambda: merge_experts(lm, 2, report),
        lambda: extract_dense(lm, report),
    ):
        with pytest.raises(ValueError, match="expert_blocks must be 1"):
            refuses()
