"""The routers alone: what they decide, and what they refuse."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.layers import TransformerLayer
from tests import bridge, reference

G, S, D, E = 3, 8, 6, 4


def build(router, dim=D, num_experts=E, kernel=None):
    """A router on its own, with logits of ordinary size."""
    if router.num_experts is None:
        config = {**router.get_config(), "num_experts": num_experts}
        router = type(router).from_config(config)
    router.build((None, None, dim))
    if kernel is None:
        kernel = np.random.default_rng(3).normal(size=(dim, num_experts))
    router.kernel.assign(np.asarray(kernel, "float32"))
    return router


def call(router, tokens, padding_mask=None, capacity=None, training=False):
    routes = router(
        ops.convert_to_tensor(tokens, "float32"),
        padding_mask=padding_mask,
        capacity=capacity,
        training=training,
    )
    assert isinstance(routes, keras_switch.RouterIndices)
    return bridge.routes_to_numpy(routes)


def quiet(cls, **kwargs):
    return cls(exploration="argmax", **kwargs)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("capacity", [None, 2])
@pytest.mark.parametrize("prioritized", [True, False])
@pytest.mark.parametrize("policy", ["all", "threshold", "random"])
@pytest.mark.parametrize("k", [0, 1, 2, 3, 4])
def test_token_choice_equals_oracle(
    k, policy, prioritized, capacity, masked, rng
):
    """k = 0 stands for the switch router."""
    tokens = rng.normal(size=(G, S, D)).astype("float32")
    mask = rng.random((G, S)) < 0.7 if masked else np.ones((G, S), bool)
    spec = reference.Spec(
        E,
        router="top_k" if k else "switch",
        k=k,
        second_policy=policy,
        second_threshold=0.3,
        batch_prioritized=prioritized,
    )
    router = build(bridge.make_router(spec))
    routes = call(router, tokens, mask if masked else None, capacity)
    edges = []
    for row, valid in zip(tokens, mask, strict=True):
        logits = row.astype("float64") @ bridge.numpy(router.kernel)
        probs = np.array([reference.softmax(r) for r in logits])
        edges.append(reference.route(spec, probs, valid, capacity))
    bridge.assert_edges_equal(routes, edges, E)
    m = np.arange(max(k, 1) * S)
    np.testing.assert_array_equal(routes.token_index, [m % S] * G)
    assert [a.dtype for a in routes] == ["int32"] * 3 + ["float32"]


def test_switch_gate_is_the_full_softmax_probability():
    """Three tokens, two experts, by hand; never renormalised."""
    router = build(quiet(keras_switch.SwitchRouter), 2, 2, np.eye(2))
    tokens = np.log([[[3.0, 1.0], [1.0, 1.0], [1.0, 4.0]]])
    routes = call(router, tokens)
    np.testing.assert_array_equal(routes.expert_index, [[0, 0, 1]])
    np.testing.assert_array_equal(routes.slot_index, [[0, 1, 0]])
    np.testing.assert_allclose(routes.gate, [[0.75, 0.5, 0.8]], rtol=1e-5)


def test_batch_prioritized_by_hand():
    """The surest token takes the first slot; equals go left to right."""
    router = quiet(keras_switch.SwitchRouter, batch_prioritized=True)
    router = build(router, 2, 2, np.eye(2))
    tokens = np.log([[[3.0, 1.0], [9.0, 1.0], [3.0, 1.0], [1.0, 2.0]]])
    for training in (True, False):
        routes = call(router, tokens, capacity=2, training=training)
        np.testing.assert_array_equal(routes.slot_index, [[1, 0, 2, 0]])


def test_a_later_token_may_take_an_earlier_ones_slot():
    """Batch-prioritized, which is why a decoder refuses it."""
    x = np.log([[[3.0, 1.0], [2.0, 1.0]]]).astype("float32")
    later = np.log([[[3.0, 1.0], [9.0, 1.0]]]).astype("float32")
    for prioritized in (False, True):
        router = quiet(keras_switch.SwitchRouter, batch_prioritized=prioritized)
        assert router.causal is not prioritized
        layer = keras_switch.SwitchLayer(
            2, 4, router=router, capacity_factor=1.0, min_capacity=1
        )
        layer.build((None, None, 2))
        layer.router.kernel.assign(np.eye(2))
        first, second = (
            bridge.numpy(layer(tokens, training=True))[0, 0]
            for tokens in (x, later)
        )
        assert (np.abs(first - second).max() > 1e-3) == prioritized
    sparse = keras_switch.SwitchLayer(
        2, 4, router=quiet(keras_switch.SwitchRouter, batch_prioritized=True)
    )
    with pytest.raises(ValueError, match=r"causal.*\(batch_prioritized=True"):
        TransformerLayer(sparse, 2, 3, cross_attention=True)


def log_odds(**kwargs):
    router = keras_switch.SwitchRouter(**kwargs)
    router = build(router, 1, 2, [[1.0, 0.0]])
    routes = call(router, np.ones((4, 1000, 1)), training=True)
    chose_first = np.where(routes.expert_index == 0, 1, -1)
    return chose_first * np.log(routes.gate / (1 - routes.gate))


@pytest.mark.parametrize("jitter", [0.01, 0.3])
def test_input_jitter_is_multiplicative_and_uniform(jitter):
    noise = log_odds(exploration="input_jitter", jitter=jitter)
    assert np.abs(noise - 1).max() <= jitter * 1.001
    assert noise.min() < 1 - 0.98 * jitter and noise.max() > 1 + 0.98 * jitter
    assert noise.std() == pytest.approx(jitter / np.sqrt(3), rel=0.05)


def test_input_dropout_scales_what_it_keeps():
    noise = log_odds(exploration="input_dropout", input_dropout=0.25)
    kept = noise > 0.5
    np.testing.assert_allclose(noise[kept], 1 / 0.75, rtol=1e-4)
    np.testing.assert_allclose(noise[~kept], 0, atol=1e-4)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)


def test_argmax_is_quiet():
    np.testing.assert_allclose(log_odds(exploration="argmax"), 1, rtol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_sample_draws_from_the_softmax(temperature):
    """And the gate is the probability of what was drawn."""
    router = keras_switch.SwitchRouter(
        exploration="sample", temperature=temperature
    )
    router = build(router, 3, 3, np.eye(3))
    p = np.array([0.5, 0.3, 0.2])
    tokens = np.tile(np.log(p), (4, 2000, 1))
    routes = call(router, tokens, training=True)
    counts = np.bincount(routes.expert_index.ravel(), minlength=4) / 8000
    wanted = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    np.testing.assert_allclose(counts[:3], wanted, atol=0.03)
    np.testing.assert_allclose(routes.gate, p[routes.expert_index], rtol=1e-4)
    routes = call(router, tokens, training=False)
    assert (routes.expert_index == 0).all()


def test_default_exploration_is_the_papers_jitter():
    router = keras_switch.SwitchRouter()
    assert (router.exploration, router.jitter) == ("input_jitter", 0.01)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "cls",
    [
        keras_switch.SwitchRouter,
        keras_switch.TopKRouter,
        keras_switch.ExpertChoiceRouter,
        keras_switch.LossFreeRouter,
        keras_switch.NoTokenLeftBehindRouter,
    ],
)
def test_routing_is_float32_under_every_policy(cls, policy, rng):
    """bfloat16 maths would miss the gates by 1e-3."""
    tokens = rng.normal(size=(G, S, D)).astype("float32")
    tokens = bridge.numpy(ops.cast(ops.cast(tokens, "bfloat16"), "float32"))
    plain = build(quiet(cls, num_experts=E))
    wanted = call(plain, tokens, capacity=3)
    router = build(quiet(cls, num_experts=E, dtype=policy))
    assert router.kernel.dtype == "float32"
    routes = router(ops.cast(tokens, "bfloat16"), capacity=3, training=False)
    for ours, theirs in zip(
        bridge.routes_to_numpy(routes), wanted, strict=True
    ):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


class SecondBest(keras_switch.Router):
    """A user's own router: every token goes to its second choice."""

    def choose(self, probs, scores, training):
        best = ops.argmax(scores, axis=-1)[..., None]  # [G, S, 1]
        experts = ops.arange(self.num_experts)
        others = ops.where(best == experts, -1.0, scores)  # [G, S, E]
        expert_index = ops.argmax(others, axis=-1)[..., None]
        gate = ops.take_along_axis(probs, expert_index, axis=-1)
        return ops.cast(expert_index, "int32"), gate  # [G, S, K] each


@pytest.mark.parametrize("dispatch", ["einsum", "gather", "dropless"])
def test_a_router_of_ones_own(dispatch, rng):
    router = SecondBest(exploration="argmax")
    spec = reference.Spec(E, dispatch=dispatch)
    layer = bridge.make_layer(spec, D, 5, router=router)
    x = rng.normal(size=(G, S, D)).astype("float32")
    y, routes = layer(x, return_routing=True)
    weights = bridge.weights(layer)
    probs = [reference.softmax(row) for row in (x @ weights["kernel"])[0]]
    for s, p in enumerate(probs):
        second = np.argsort(-p)[1]
        edge = reference.Edge(s, second, 0, p[second], True)
        row = reference.feed_forward(spec, x[0, s], weights, edge)
        np.testing.assert_allclose(
            bridge.numpy(y)[0, s], p[second] * row, rtol=1e-5, atol=1e-5
        )
    config = layer.get_config()
    with keras.saving.custom_object_scope({"SecondBest": SecondBest}):
        again = keras_switch.SwitchLayer.from_config(config)
    assert isinstance(again.router, SecondBest)


@pytest.mark.parametrize(
    "router",
    [
        keras_switch.SwitchRouter(
            num_experts=E,
            exploration="sample",
            temperature=0.7,
            load_balancing_loss_weight=0.2,
            z_loss_weight=0.1,
            importance_loss_weight=0.3,
            batch_prioritized=True,
            init_scale=0.5,
            jitter=0.2,
            input_dropout=0.3,
            seed=11,
        ),
        keras_switch.TopKRouter(
            k=3, second_policy="threshold", second_threshold=0.4
        ),
        keras_switch.ExpertChoiceRouter(z_loss_weight=0.1),
    ],
    ids=lambda router: type(router).__name__,
)
def test_config_round_trip(router):
    config = keras.saving.serialize_keras_object(router)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(router)
    assert again.get_config() == router.get_config()
    init = {k for k in config["config"]}
    assert {"num_experts", "exploration", "z_loss_weight"} <= init


@pytest.mark.parametrize(
    "kwargs,name",
    [
        ({"num_experts": 0}, "num_experts"),
        ({"num_experts": -1}, "num_experts"),
        ({"num_experts": 2.0}, "num_experts"),
        ({"num_experts": True}, "num_experts"),
        ({"num_experts": "4"}, "num_experts"),
        ({"exploration": "curious"}, "exploration"),
        ({"exploration": None}, "exploration"),
        ({"jitter": -0.1}, "jitter"),
        ({"jitter": float("nan")}, "jitter"),
        ({"input_dropout": 1.0}, "input_dropout"),
        ({"input_dropout": -0.1}, "input_dropout"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"load_balancing_loss_weight": -1.0}, "load_balancing_loss_weight"),
        ({"z_loss_weight": -1.0}, "z_loss_weight"),
        ({"importance_loss_weight": -1.0}, "importance_loss_weight"),
        ({"init_scale": 0.0}, "init_scale"),
    ],
)
def test_router_refuses(kwargs, name):
    with pytest.raises((ValueError, TypeError), match=name) as error:
        keras_switch.SwitchRouter(**kwargs)
    assert str(next(iter(kwargs.values()))) in str(error.value)
