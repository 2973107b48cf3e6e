"""Upcycled models against the dense ones they came from."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch import TopKRouter
from keras_switch.convert.rules import variables
from keras_switch.convert.upcycle import UnitGateRouter, upcycle
from keras_switch.layers import FeedForward, SwitchLayer
from keras_switch.models import SwitchSeq2SeqLM
from tests.models import tiny

DENSE = {
    "num_experts": None,
    "encoder_sparse_step": 0,
    "decoder_sparse_step": 0,
}
X = tiny.inputs(np.random.default_rng(3))
REAL = X["decoder_padding_mask"] > 0


def dense_lm(**arguments):
    return tiny.lm(**{**DENSE, **arguments})


def arrays(model):
    backbone = getattr(model, "backbone", model)
    return {
        v.path: ops.convert_to_numpy(ops.cast(v, "float32"))
        for v in variables(backbone)
    }


def logits(model, training=False):
    """Of the real positions: a sparse layer's output is 0 on padding."""
    return ops.convert_to_numpy(model(X, training=training))[REAL]


def layers(model):
    backbone = model.backbone
    stack = backbone.encoder_transformer_layers
    return [*stack, *backbone.decoder_transformer_layers]


def normalised(name):
    """The routers whose gates are normalised, without auxiliary losses."""
    options = {"load_balancing_loss_weight": 0.0, "exploration": "argmax"}
    if name == "unit_gate":
        return UnitGateRouter(**options)
    return TopKRouter(k=2, second_policy="all", **options)


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("task", [True, False])
def test_weights(activation, tied, task):
    dense = dense_lm(activation=activation, tie_embedding_weights=tied)
    dense = dense if task else dense.backbone
    before = arrays(dense)
    sparse = upcycle(dense, 3)
    assert type(sparse) is type(dense)
    after = arrays(sparse)
    experts = routers = 0
    for path, value in after.items():
        if "/router/" in path:
            routers += 1
            assert value.shape == (16, 3) and np.std(value) > 0
            continue
        source = before.pop(path.replace("/experts/", "/"))
        experts += "/experts/" in path
        for copy in value if "/experts/" in path else [value]:
            np.testing.assert_array_equal(copy, source, path)
    assert not before
    assert routers == 2
    assert experts == 2 * (3 if activation == "gated-gelu" else 2)


def test_dense_model_is_left_as_it_was():
    dense = dense_lm()
    before, config = arrays(dense), dense.backbone.get_config()
    upcycle(dense, 2, noise=0.5)
    for path, value in arrays(dense).items():
        np.testing.assert_array_equal(value, before[path])
    assert dense.backbone.get_config() == config


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("router", ["unit_gate", "top_2"])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_normalised_gates_give_the_dense_models_logits(
    activation, router, training
):
    dense = dense_lm(activation=activation, tie_embedding_weights=False)
    # In training, a capacity of all tokens; evaluation is dropless.
    sparse = upcycle(
        dense, 4, 1, 2, normalised(router), capacity_factor=4.0, min_capacity=1
    )
    got, wanted = logits(sparse, training), logits(dense, training)
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("router", ["unit_gate", "top_2"])
def test_one_changed_expert_is_noticed(router):
    dense = dense_lm()
    sparse = upcycle(dense, 2, router=normalised(router))
    kernel = layers(sparse)[-1].feed_forward.experts.wo.kernel
    value, changes = ops.convert_to_numpy(kernel), []
    for expert in range(2):  # one of them may have no token
        changed = value.copy()
        changed[expert] *= 1.5
        kernel.assign(changed)
        changes.append(np.abs(logits(sparse) - logits(dense)).max())
    assert max(changes) > 1e-2


def test_too_little_capacity_in_training_is_noticed():
    dense = dense_lm()
    sparse = upcycle(
        dense, 2, router=normalised("unit_gate"), capacity=1, min_capacity=1
    )
    assert np.abs(logits(sparse, True) - logits(dense, True)).max() > 1e-2


def test_top_1_differs_by_the_gate_only(rng):
    dense = dense_lm(num_encoder_layers=3)
    sparse = upcycle(dense, 4)
    assert np.abs(logits(sparse) - logits(dense)).max() > 1e-2
    x = rng.normal(size=(2, 6, 16)).astype("float32")
    compared = 0
    for ours, theirs in zip(layers(sparse), layers(dense), strict=True):
        if not isinstance(ours.feed_forward, SwitchLayer):
            continue
        compared += 1
        got, routes = ours.feed_forward(x, return_routing=True)
        got = ops.convert_to_numpy(got)
        gate = ops.convert_to_numpy(routes.gate)[..., None]  # [B, T, 1]
        assert 0 < gate.min() and gate.max() < 0.99
        wanted = gate * ops.convert_to_numpy(theirs.feed_forward(x))
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert compared == 2


def test_which_layers_become_sparse():
    dense = dense_lm(num_encoder_layers=4, num_decoder_layers=3)
    sparse = upcycle(
        dense,
        2,
        encoder_sparse_step=[0, 3],
        decoder_sparse_step=0,
    )
    names = [
        layer.name
        for layer in layers(sparse)
        if isinstance(layer.feed_forward, SwitchLayer)
    ]
    assert names == ["encoder_layer_0", "encoder_layer_3"]


def test_noise():
    dense = dense_lm(hidden_dim=64, intermediate_dim=128)
    path = "encoder_layer_1/feed_forward/experts/wi/kernel"
    source = arrays(dense)[path.replace("/experts/", "/")]
    experts = arrays(upcycle(dense, 3, noise=0.1, seed=1))[path]
    differences = experts - source
    ratios = differences.std(axis=(1, 2)) / source.std()
    np.testing.assert_allclose(ratios, 0.1, rtol=0.05)
    correlation = np.corrcoef(differences.reshape(3, -1))
    assert np.abs(correlation - np.eye(3)).max() < 0.1
    other = arrays(upcycle(dense, 3, noise=0.1, seed=1))[path]
    np.testing.assert_array_equal(other, experts)


def test_seed_of_the_routers():
    dense = dense_lm(hidden_dim=64, num_encoder_layers=4)
    seeds = (1, 1, 2, None, None)
    models = [arrays(upcycle(dense, 8, seed=seed)) for seed in seeds]
    paths = [path for path in models[0] if "/router/" in path]
    kernels = [np.stack([m[path] for path in paths]) for m in models]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    for kernel in kernels[2:4]:
        assert np.abs(kernel - kernels[0]).max() > 0.01
    assert np.abs(kernels[3] - kernels[4]).max() > 0.01
    # Of init_scale 0.1, truncated at two standard deviations; none alike.
    assert np.std(kernels[0]) == pytest.approx((0.1 / 64) ** 0.5, rel=0.15)
    assert len({kernel.tobytes() for kernel in kernels[0]}) == len(paths)


def test_global_seed_stands_in_for_the_seed():
    dense, models = dense_lm(), []
    for _ in range(2):
        keras.utils.set_random_seed(11)
        models.append(arrays(upcycle(dense, 2, noise=0.1)))
    for path, value in models[0].items():
        np.testing.assert_array_equal(value, models[1][path])


def test_dtype_is_kept():
    dense = dense_lm(dtype="bfloat16")
    sparse = upcycle(dense, 2, noise=0.1)
    names = {
        v.path: keras.backend.standardize_dtype(v.dtype)
        for v in variables(sparse.backbone)
    }
    assert names.pop("encoder_layer_1/feed_forward/router/kernel") == "float32"
    assert names.pop("decoder_layer_1/feed_forward/router/kernel") == "float32"
    assert set(names.values()) == {"bfloat16"}
    assert sparse.backbone.compute_dtype == "bfloat16"


def test_arguments_and_preprocessor():
    dense = tiny.lm(tiny.preprocessor(), **DENSE, decoder_router="top_k")
    sparse = upcycle(dense, 2, capacity_factor=2.0, dropout=0.1)
    config = sparse.backbone.get_config()
    assert config["capacity_factor"] == 2.0 and config["dropout"] == 0.1
    assert config["num_experts"] == 2 and config["decoder_router"] is None
    assert sparse.preprocessor is dense.preprocessor
    text = sparse.generate("the <extra_id_0> walks", max_length=4)
    assert isinstance(text, str)


def test_preset_round_trip(tmp_path):
    dense = dense_lm()
    sparse = upcycle(dense, 2, router=UnitGateRouter(jitter=0.02))
    sparse.save_to_preset(str(tmp_path))
    again = SwitchSeq2SeqLM.from_preset(str(tmp_path))
    router = layers(again)[-1].feed_forward.router
    assert type(router) is UnitGateRouter and router.jitter == 0.02
    np.testing.assert_allclose(logits(again), logits(dense), atol=1e-5)


def quantized():
    model = dense_lm()
    layers(model)[1].feed_forward.wo.quantize("int8")
    return model


def st_moe():
    return dense_lm(extra_feed_forward=True)


def with_shared():
    return dense_lm(num_shared_experts=1)


def with_lora():
    model = dense_lm()
    layers(model)[1].feed_forward.wo.enable_lora(2)
    return model


@pytest.mark.parametrize(
    "make, arguments, message",
    [
        (tiny.lm, {}, "received one with encoder_layer_1, decoder_layer_1"),
        (quantized, {}, "must not be quantized; received one whose .*int8"),
        (with_lora, {}, "received one with .*lora_kernel_a.* beyond them"),
        (with_shared, {}, "shared_expert/wi/kernel.* missing"),
        (st_moe, {}, "extra_feed_forward/wi/kernel.* missing"),
        (lambda: keras.Sequential(), {}, "SwitchSeq2SeqLM; received Sequ"),
        (dense_lm, {"noise": -1.0}, "noise must be"),
        (dense_lm, {"seed": -1}, "seed must be"),
        (dense_lm, {"num_experts": 0}, "num_experts must be"),
        (dense_lm, {"hidden_dim": 8}, "upcycle has no argument hidden_dim"),
        (
            dense_lm,
            {"encoder_sparse_step": 0, "decoder_sparse_step": 3},
            "at least one layer sparse; received encoder_sparse_step=0, dec",
        ),
        (dense_lm, {"encoder_sparse_step": [2]}, "encoder_sparse_step must be"),
        (dense_lm, {"router": "expert_choice"}, "decoder_router must be causa"),
        (dense_lm, {"optimizer": "adam"}, "optimizer that is built"),
    ],
)
def test_refused(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        upcycle(make(), **{"num_experts": 2, **arguments})


def switch_layer(router, noise, rng):
    """Experts that are copies, but for noise, and the router that is given."""
    keras.utils.set_random_seed(5)
    feed_forward = FeedForward(24, init_scale=2.0)
    feed_forward.build((None, None, 16))
    layer = SwitchLayer(4, 24, router=router)
    layer.build((None, None, 16))
    for name in ("wi", "wo"):
        kernel = ops.convert_to_numpy(
            next(v for v in feed_forward.weights if f"{name}/" in v.path)
        )
        copies = kernel + noise * rng.normal(size=(4, *kernel.shape))
        target = layer.experts.wo if name == "wo" else layer.experts._wi[0]
        target.kernel.assign(copies.astype("float32"))
    kernel = rng.normal(size=(16, 4)).astype("float32")
    layer.router.kernel.assign(kernel)
    return layer


def router_gradient(router, noise, gradients):
    rng = np.random.default_rng(5)
    layer = switch_layer(router, noise, rng)
    x = rng.normal(size=(2, 7, 16)).astype("float32")
    direction = ops.convert_to_tensor(
        rng.normal(size=(2, 7, 16)).astype("float32")
    )

    def loss(x):
        return ops.sum(layer(x, training=False) * direction)

    _, _, (gradient,) = gradients(loss, [x], [layer.router.kernel])
    return gradient


def test_unit_gates_hand_on_the_gradient_of_the_probability(gradients):
    wanted = router_gradient("switch", 0.1, gradients)
    got = router_gradient(UnitGateRouter(), 0.1, gradients)
    assert np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_two_gates_teach_the_router_once_experts_differ(gradients):
    router = TopKRouter(k=2, second_policy="all")
    same = router_gradient(router, 0.0, gradients)
    np.testing.assert_allclose(same, 0.0, atol=1e-4)
    assert np.abs(router_gradient(router, 0.1, gradients)).max() > 0.1


def test_unit_gates_have_no_order_to_prioritise_by():
    with pytest.raises(ValueError, match="batch_prioritized must be False"):
        UnitGateRouter(batch_prioritized=True)
