"""What SwitchLayer promises, beyond being equal to the oracle."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers.feed_forward import FeedForward
from tests import bridge, reference

T, D, E, F = 8, 6, 4, 5
DISPATCHES = ["einsum", "gather", "dropless"]
ROUTERS = ["switch", "top_k", "expert_choice"]
# Experts that choose their tokens are never dropless.
PAIRS = [(r, d) for r in ROUTERS for d in DISPATCHES]
PAIRS.remove(("expert_choice", "dropless"))
TIGHT = {"capacity_factor": 0.5, "min_capacity": 1}


def make(router="switch", num_experts=E, router_kwargs=None, **kwargs):
    fields = {f for f in reference.Spec.__dataclass_fields__}
    spec = reference.Spec(
        num_experts,
        router=router,
        k=min(2, num_experts),
        **{k: v for k, v in kwargs.items() if k in fields},
    )
    router = bridge.make_router(spec, **(router_kwargs or {}))
    rest = {k: v for k, v in kwargs.items() if k not in fields}
    layer = bridge.make_layer(spec, D, F, router=router, **rest)
    return layer


def total_loss(layer):
    return sum(float(bridge.numpy(loss)) for loss in layer.losses)


def normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_one_expert_is_the_dense_feed_forward(
    training, router, dispatch, activation, rng, gradients
):
    """Forward and gradients; the gate of one expert is 1."""
    layer = make(router, 1, dispatch=dispatch, activation=activation)
    dense = FeedForward(F, activation=activation)
    dense.build((None, None, D))
    names = ["wi_0", "wi_1", "wo"] if "gated" in activation else ["wi", "wo"]
    ours = bridge.variables(layer)
    theirs = {v.path.split("/")[-2]: v for v in dense.trainable_variables}
    assert sorted(theirs) == names
    for name in names:
        theirs[name].assign(ours[name][0])
    x, dy = normal(rng, 2, 2, T, D)
    dy = ops.convert_to_tensor(dy)
    kernel = [ours["kernel"]]
    results = []
    for module, variables in ((layer, ours), (dense, theirs)):
        variables = [variables[n] for n in names]
        variables += kernel if module is layer else []

        def objective(x, module=module):
            return ops.sum(module(x, training=training) * dy)

        value, dx, dw = gradients(objective, [x], variables)
        results.append((value, dx[0], [*dw]))
    (v1, dx1, dw1), (v2, dx2, dw2) = results
    np.testing.assert_allclose(v1, v2, rtol=1e-5)
    np.testing.assert_allclose(dx1, dx2, atol=1e-6, rtol=1e-5)
    for a, b in zip(dw1, dw2, strict=False):
        np.testing.assert_allclose(a[0], b, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(dw1[-1], 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, T, D), (2, 0, D), (0, 0, D)])
@pytest.mark.parametrize("group_size", [None, 4])
@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_empty_batch(training, router, dispatch, group_size, shape):
    layer = make(router, dispatch=dispatch, group_size=group_size)
    mask = np.ones(shape[:2], "int32")
    y = layer(np.zeros(shape, "float32"), padding_mask=mask, training=training)
    assert tuple(y.shape) == shape
    assert total_loss(layer) == 0
    assert (bridge.numpy(layer.routing_stats.value) == 0).all()


@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("training", [True, False])
def test_all_padding(training, router, dispatch, rng):
    weights = {"z_loss_weight": 1.0, "importance_loss_weight": 1.0}
    layer = make(router, dispatch=dispatch, **weights)
    x = normal(rng, 2, T, D)
    y = layer(x, padding_mask=np.zeros((2, T)), training=training)
    assert (bridge.numpy(y) == 0).all()
    assert total_loss(layer) == 0
    assert (bridge.numpy(layer.routing_stats.value) == 0).all()


@pytest.mark.parametrize("dispatch", ["einsum", "gather"])
def test_evaluation_is_dropless_unless_told(dispatch, rng):
    x = np.ones((1, T, D), "float32")
    for factor, kept in ((None, T), (0.5, 1), (1.0, 2)):
        layer = make(dispatch=dispatch, eval_capacity_factor=factor, **TIGHT)
        rows = np.abs(bridge.numpy(layer(x, training=False))[0]).sum(-1)
        assert (rows > 0).sum() == kept
        rows = np.abs(bridge.numpy(layer(x, training=True))[0]).sum(-1)
        assert (rows > 0).sum() == 1


def test_a_collapsed_layer_reads_the_number_of_experts():
    """Also several layers, each collapsed on an expert of its own."""
    layers = [
        make(load_balancing_loss_weight=1.0, name=f"layer_{e}")
        for e in range(E)
    ]
    for e, layer in enumerate(layers):
        kernel = np.zeros((D, E), "float32")
        kernel[:, e] = 10.0
        layer.router.kernel.assign(kernel)
        layer(np.ones((2, T, D), "float32"), training=True)
        assert len(layer.losses) == 1
        assert total_loss(layer) == pytest.approx(E)
    x = keras.Input((T, D))
    # Each layer sees the same ones, so each is collapsed.
    model = keras.Model(x, sum(layer(x) for layer in layers))
    model(np.ones((2, T, D), "float32"), training=True)
    assert total_loss(model) == pytest.approx(E * E)
    for layer in layers:
        stats = bridge.numpy(layer.routing_stats.value)
        named = dict(zip(layer.routing_stats.names, stats, strict=False))
        assert named["load_balancing_loss"] == pytest.approx(E)
        assert named["max_mean_load"] == pytest.approx(E)


def test_losses_are_weighted_and_only_in_training(rng):
    x = normal(rng, 2, T, D)
    base = {
        "load_balancing_loss_weight": 0.0,
        "z_loss_weight": 0.0,
        "importance_loss_weight": 0.0,
    }
    for name in base:
        layer = make(**{**base, name: 0.25})
        spec = reference.Spec(E, training=True)
        layer(x, training=True)
        wanted = bridge.run_oracle(spec, layer, x).losses
        loss = total_loss(layer)
        key = {
            "load_balancing_loss_weight": "load_balancing_loss",
            "z_loss_weight": "router_z_loss",
            "importance_loss_weight": "importance_loss",
        }[name]
        assert loss == pytest.approx(0.25 * wanted[key], rel=1e-5)
        layer(x, training=False)
        assert not layer.losses
    router = keras_switch.SwitchRouter(exploration="argmax")
    layer = keras_switch.SwitchLayer(E, F, router=router)
    layer(x, training=True)
    wanted = bridge.run_oracle(spec, layer, x).losses["load_balancing_loss"]
    loss = total_loss(layer)
    assert loss == pytest.approx(0.01 * wanted, rel=1e-5)  # the paper's alpha


@pytest.mark.parametrize("exploration", ["input_jitter", "input_dropout"])
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_exploration_never_reaches_the_experts(
    exploration, dispatch, policy, rng
):
    """One expert has gate 1, so its output shows what it was given."""
    noisy = {"exploration": exploration, "jitter": 0.9, "input_dropout": 0.9}
    layer = make(
        num_experts=1, router_kwargs=noisy, dispatch=dispatch, dtype=policy
    )
    x = normal(rng, 2, T, D)
    # Two paths may round differently; noise of 0.9 is far from rounding.
    near = 1e-5 if policy == "float32" else 0.02
    evaluation, training = (
        bridge.numpy(ops.cast(layer(x, training=t), "float32"))
        for t in (False, True)
    )
    np.testing.assert_allclose(training, evaluation, rtol=near, atol=near)


@pytest.mark.parametrize(
    "exploration", ["input_jitter", "input_dropout", "sample"]
)
@pytest.mark.parametrize("router", ROUTERS)
def test_exploration_acts_in_training_only(exploration, router, rng):
    noisy = {"exploration": exploration, "jitter": 0.9, "input_dropout": 0.5}
    roomy = {} if router == "expert_choice" else {"capacity_factor": 8.0}
    layer = make(router, router_kwargs=noisy, **roomy)
    quiet = make(router, **roomy)
    x = normal(rng, 2, T, D)
    wanted = bridge.numpy(quiet(x))
    for _ in range(2):
        np.testing.assert_array_equal(bridge.numpy(layer(x)), wanted)
        y = bridge.numpy(layer(x, training=False))
        np.testing.assert_array_equal(y, wanted)
    first, second = (bridge.numpy(layer(x, training=True)) for _ in range(2))
    assert np.abs(first - wanted).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("as_default", [True, False])
def test_expert_dropout_is_at_the_d_ff_activation(as_default):
    """With one hidden unit an output row is 0 or twice the evaluation's."""
    rate = {"dropout": 0.5}
    if not as_default:
        rate = {"dropout": 0.0, "expert_dropout": 0.5}
    spec = reference.Spec(E, dispatch="dropless")
    layer = bridge.make_layer(spec, D, 1, **rate)
    bridge.variables(layer)["wi"].assign(np.ones((E, D, 1), "float32"))
    x = np.ones((4, 64, D), "float32")
    ratio = bridge.numpy(layer(x, training=True) / layer(x, training=False))
    np.testing.assert_allclose(ratio, np.round(ratio / 2) * 2, atol=1e-5)
    np.testing.assert_array_equal(ratio.std(-1) < 1e-5, True)
    dropped = (ratio[..., 0] < 1).mean()
    assert 0.35 < dropped < 0.65


def test_zero_expert_dropout_beside_dropout(rng):
    layer = make(dropout=0.5, expert_dropout=0.0, dispatch="dropless")
    x = normal(rng, 2, T, D)
    np.testing.assert_array_equal(
        bridge.numpy(layer(x, training=True)), bridge.numpy(layer(x))
    )


@pytest.mark.parametrize("router,dispatch", PAIRS)
def test_the_task_reaches_the_router_only_through_the_gate(
    router, dispatch, rng, gradients
):
    """Stop the gate and the router's kernel gets exactly nothing."""
    base = {
        "switch": keras_switch.SwitchRouter,
        "top_k": keras_switch.TopKRouter,
        "expert_choice": keras_switch.ExpertChoiceRouter,
    }[router]

    class Stopped(base):
        def route(self, *args):
            routes = super().route(*args)
            return routes._replace(gate=ops.stop_gradient(routes.gate))

    x = normal(rng, 2, T, D)
    for cls, moves in ((base, True), (Stopped, False)):
        spec = reference.Spec(E, dispatch=dispatch, **TIGHT)
        quiet = cls(exploration="argmax", load_balancing_loss_weight=0.0)
        layer = bridge.make_layer(spec, D, F, router=quiet)

        def objective(x, layer=layer):
            return ops.sum(layer(x, training=True) ** 2)

        _, _, (grad,) = gradients(objective, [x], [layer.router.kernel])
        assert (np.abs(grad).max() > 1e-4) == moves
        assert moves or (grad == 0).all()


def test_mask_values_over_one_are_real_tokens(rng):
    """Packed segments are numbered 1, 2, 3."""
    layer = make(**TIGHT)
    x = normal(rng, 2, T, D)
    segments = np.array([[1, 1, 2, 2, 3, 3, 0, 0], [1, 2, 2, 0, 3, 3, 3, 4]])
    numbered = layer(x, padding_mask=segments, training=True)
    for dtype in ("int32", "bool", "float32", "int64"):
        plain = layer(
            x, padding_mask=(segments > 0).astype(dtype), training=True
        )
        np.testing.assert_array_equal(
            bridge.numpy(numbered), bridge.numpy(plain)
        )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("group_size", [None, 4])
def test_statistics_are_written_unless_told(group_size, training, rng):
    """Of sequences of one token too."""
    layer = make(group_size=group_size)
    layer(normal(rng, 2, T, D), training=training)
    before = bridge.numpy(layer.routing_stats.value).copy()
    assert before[-1] == 2 * T
    for length in (1, T):
        x = normal(rng, 5, length, D)
        layer(x, training=training, record=False)
        np.testing.assert_array_equal(
            bridge.numpy(layer.routing_stats.value), before
        )
    spec = reference.Spec(E, group_size=group_size, training=training)
    x = normal(rng, 5, 1, D)
    layer(x, training=training)
    bridge.assert_statistics_equal(layer, bridge.run_oracle(spec, layer, x))


def test_initialisation_is_the_papers():
    """Truncated normal, scale 0.1, every expert with its own fan-in."""
    layer = keras_switch.SwitchLayer(32, 128)
    layer.build((None, None, 64))
    fans = {"kernel": 64, "wi": 64, "wo": 128}
    for name, variable in bridge.variables(layer).items():
        value = bridge.numpy(variable)
        std = np.sqrt(0.1 / fans[name])
        # Cut at two deviations the normal has 0.88 of its deviation left.
        assert value.std() == pytest.approx(0.88 * std, rel=0.05), name
        assert 1.8 * std < np.abs(value).max() <= 2 * std, name
        assert abs(value.mean()) < 0.1 * std, name
    experts = bridge.numpy(bridge.variables(layer)["wi"])
    flat = experts.reshape(32, -1)
    assert np.abs(np.corrcoef(flat) - np.eye(32)).max() < 0.1


def test_weights_and_their_public_paths():
    layer = keras_switch.SwitchLayer(E, F, activation="gated-gelu", name="moe")
    layer.build((None, None, D))
    shapes = {v.path: tuple(v.shape) for v in layer.trainable_variables}
    assert shapes == {
        "moe/router/kernel": (D, E),
        "moe/experts/wi_0/kernel": (E, D, F),
        "moe/experts/wi_1/kernel": (E, D, F),
        "moe/experts/wo/kernel": (E, F, D),
    }
