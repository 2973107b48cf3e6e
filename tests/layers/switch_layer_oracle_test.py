"""Every router x dispatch against the NumPy oracle, values and gradients."""

import numpy as np
import pytest
from keras import ops

from tests import bridge, reference, reference_gradients

B, T, D, E = 3, 8, 6, 4
MASK = np.array([[1] * 8, [1] * 5 + [0] * 3, [0, 1, 2, 2, 0, 1, 1, 0]])
# Few, so that experts overflow; one beyond the vocabulary of a hash table.
IDS = np.random.default_rng(1).choice([2, 9, bridge.VOCABULARY + 3], (B, T))
NO_LOSSES = {
    "load_balancing_loss_weight": 0.0,
    "z_loss_weight": 0.0,
    "importance_loss_weight": 0.0,
}
ROUTERS = {
    "switch": {},
    "switch prioritized": {"batch_prioritized": True},
    "top_k 1": {"router": "top_k", "k": 1},
    "top_k 2": {"router": "top_k", "k": 2},
    "top_k 2 prioritized": {
        "router": "top_k",
        "k": 2,
        "batch_prioritized": True,
    },
    "top_k 2 threshold": {
        "router": "top_k",
        "k": 2,
        "second_policy": "threshold",
        "second_threshold": 0.3,
    },
    "top_k 3": {"router": "top_k", "k": 3, "activation": "gated-gelu"},
    "expert_choice": {"router": "expert_choice"},
    "expert_choice capped": {"router": "expert_choice", "max_experts": 1},
    "hash": {"router": "hash", **NO_LOSSES},
    "hash 2": {"router": "hash", "k": 2, **NO_LOSSES},
    "random": {"router": "random", **NO_LOSSES},
    "no_token_left_behind 2": {"router": "no_token_left_behind", "k": 2},
    "no_token_left_behind 4": {"router": "no_token_left_behind", "k": 4},
    "loss_free 1": {"router": "loss_free", "gate": "sigmoid"},
    "loss_free 2": {"router": "loss_free", "k": 2, "gate": "sigmoid"},
    "loss_free 2 softmax": {"router": "loss_free", "k": 2},
    "group_limited 2": {
        "router": "group_limited",
        "k": 2,
        "gate": "sigmoid",
    },
    "base": {
        "router": "base",
        "gate": "sigmoid",
        **NO_LOSSES,
        "z_loss_weight": 0.3,
    },
    "noisy_top_k 2": {
        "router": "noisy_top_k",
        "k": 2,
        "load_balancing_loss_weight": 0.0,
        "load_loss_weight": 0.9,
    },
    "noisy_top_k 3": {
        "router": "noisy_top_k",
        "k": 3,
        "load_balancing_loss_weight": 0.0,
        "load_loss_weight": 0.2,
        "batch_prioritized": True,
    },
}
SQUEEZE = {
    "roomy": {"capacity_factor": 8.0},
    "drops": {"capacity_factor": 0.6, "min_capacity": 1},
    "groups": {"capacity_factor": 0.7, "min_capacity": 1, "group_size": 5},
}
LOSSES = {
    "load_balancing_loss_weight": 0.7,
    "z_loss_weight": 0.3,
    "importance_loss_weight": 0.5,
}
DISPATCHES = ["einsum", "gather", "dropless"]


SHORT = ["base", "switch", "top_k 2", "expert_choice", "hash 2", "random"]
EXPERTS_CHOOSE = ("expert_choice", "expert_choice capped")
# Those that find room for a token that another would drop.
KEEP = ("no_token_left_behind 2", "no_token_left_behind 4", "base")
# Those whose choice is not of a kernel's logits.
WITHOUT_TIES = (
    "expert_choice capped",
    "hash",
    "hash 2",
    "random",
    "noisy_top_k 2",
    "noisy_top_k 3",
    "base",
)


def possible(routers):
    """Router x dispatch; experts that choose are never dropless."""
    return [
        (router, dispatch)
        for router in routers
        for dispatch in DISPATCHES
        if dispatch != "dropless" or router not in EXPERTS_CHOOSE
    ]


def pairs(routers):
    return pytest.mark.parametrize("router,dispatch", possible(routers))


def sparingly(router, everywhere=False):
    """Marks for a case that, of the routers of other papers, one backend runs:
    all of them run the cases with drops."""
    own = router.startswith(("switch", "top_k")) or router == "expert_choice"
    return () if own or everywhere else pytest.mark.any_backend


def make(router, squeeze, dispatch, **kwargs):
    spec = reference.Spec(
        E,
        dispatch=dispatch,
        **{**LOSSES, **ROUTERS[router], **SQUEEZE[squeeze], **kwargs},
    )
    return spec, bridge.make_layer(spec, dim=D)


@pytest.mark.parametrize(
    "squeeze,router,dispatch",
    [
        pytest.param(s, r, d, marks=sparingly(r, everywhere=s == "drops"))
        for s in SQUEEZE
        for r, d in possible(ROUTERS)
    ],
)
def test_training_equals_oracle(router, squeeze, dispatch, rng, gradients):
    spec, layer = make(router, squeeze, dispatch, training=True)
    x, dy = rng.normal(size=(2, B, T, D))
    weight = ops.convert_to_tensor(dy.astype("float32"))

    def objective(x):
        y = layer(x, padding_mask=MASK, training=True, token_ids=IDS)
        return ops.sum(y * weight) + sum(layer.losses)

    layer(x.astype("float32"), padding_mask=MASK, training=True, token_ids=IDS)
    wanted = bridge.run_oracle(spec, layer, x, MASK, IDS)
    bridge.assert_statistics_equal(layer, wanted)
    drops = wanted.statistics["dropped_fraction"] > 0
    can_drop = dispatch != "dropless" and squeeze != "roomy"
    assert drops == can_drop or (can_drop and router in KEEP)
    variables = bridge.variables(layer)
    value, (dx,), dws = gradients(objective, [x], variables.values())
    loss = reference.total_loss(spec, wanted.losses)
    np.testing.assert_allclose(
        value, (wanted.y * dy).sum() + loss, rtol=1e-5, atol=1e-5
    )
    grads = reference_gradients.gradients(
        spec, x, bridge.weights(layer), dy, MASK, IDS
    )
    np.testing.assert_allclose(dx, grads["x"], rtol=1e-5, atol=1e-5)
    for name, dw in zip(variables, dws, strict=True):
        np.testing.assert_allclose(
            dw, grads[name], rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("eval_capacity_factor", [None, 0.6])
@pairs([*ROUTERS, "top_k 2 random"])
def test_evaluation_equals_oracle(router, dispatch, eval_capacity_factor, rng):
    kwargs = {"eval_capacity_factor": eval_capacity_factor}
    if router == "top_k 2 random":
        router, kwargs["second_policy"] = "top_k 2", "random"
    spec, layer = make(router, "drops", dispatch, **kwargs)
    x = rng.normal(size=(B, T, D)).astype("float32")
    y, routes = layer(x, padding_mask=MASK, return_routing=True, token_ids=IDS)
    wanted = bridge.run_oracle(spec, layer, x, MASK, IDS)
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_edges_equal(routes, wanted.edges, E)
    bridge.assert_statistics_equal(layer, wanted)
    assert not layer.losses
    drops = wanted.statistics["dropped_fraction"] > 0
    can_drop = dispatch != "dropless" and eval_capacity_factor is not None
    wanted = can_drop or router in EXPERTS_CHOOSE
    assert drops == wanted or (can_drop and router in KEEP)


@pytest.mark.parametrize("group_size", [None, 5])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("capacity", [1, 2])
@pytest.mark.parametrize("dispatch", ["einsum", "gather"])
@pytest.mark.parametrize(
    "router", [pytest.param(r, marks=sparingly(r)) for r in ROUTERS]
)
def test_capacity_in_slots_equals_oracle(
    router, dispatch, capacity, training, group_size, rng
):
    """In place of both factors, which would leave room for all."""
    kwargs = {"eval_capacity_factor": 8.0, "group_size": group_size}
    spec, layer = make(
        router,
        "roomy",
        dispatch,
        capacity=capacity,
        training=training,
        **kwargs,
    )
    x = rng.normal(size=(B, T, D)).astype("float32")
    y, routes = layer(
        x,
        padding_mask=MASK,
        training=training,
        return_routing=True,
        token_ids=IDS,
    )
    wanted = bridge.run_oracle(spec, layer, x, MASK, IDS)
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_edges_equal(routes, wanted.edges, E)
    bridge.assert_statistics_equal(layer, wanted)
    drops = wanted.statistics["dropped_fraction"] > 0
    assert drops or router in EXPERTS_CHOOSE + KEEP
    per_expert = [
        sum(edge.kept and edge.expert == e for edge in group)
        for group in wanted.edges
        for e in range(E)
    ]
    assert max(per_expert) == capacity


@pytest.mark.parametrize("training", [True, False])
def test_experts_that_choose_take_their_quota_and_no_more(training, rng):
    """`ceil(factor * tokens / E)`, however few that is: no `min_capacity`."""
    spec = reference.Spec(
        E, "expert_choice", capacity_factor=1.0, training=training
    )
    layer = bridge.make_layer(spec, dim=D)
    x = rng.normal(size=(B, T, D)).astype("float32")
    _, routes = layer(
        x, padding_mask=MASK, training=training, return_routing=True
    )
    taken = (bridge.numpy(routes.expert_index) < E).sum(-1)
    # Rows of 8, 5 and 5 tokens.
    np.testing.assert_array_equal(taken, [E * 2, E * 2, E * 2])
    x = x[:, :4]  # rows of 4, 4 and 3
    _, routes = layer(
        x, padding_mask=MASK[:, :4], training=training, return_routing=True
    )
    taken = (bridge.numpy(routes.expert_index) < E).sum(-1)
    np.testing.assert_array_equal(taken, [E, E, E])


@pytest.mark.parametrize(
    "shape,training",
    [((2, 3), True), ((2, 3), False), ((1, 1), False), ((9, 1), False)],
)
@pairs(SHORT)
def test_short_sequences_equal_oracle(shape, router, dispatch, training, rng):
    """Fewer tokens than experts, and the step of a decoder, T = 1."""
    spec, layer = make(router, "drops", dispatch, training=training)
    x = rng.normal(size=(*shape, D)).astype("float32")
    ids = IDS.reshape(-1)[: x[..., 0].size].reshape(shape)
    y, routes = layer(x, training=training, return_routing=True, token_ids=ids)
    wanted = bridge.run_oracle(spec, layer, x, token_ids=ids)
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)
    bridge.assert_edges_equal(routes, wanted.edges, E)


@pairs([router for router in ROUTERS if router not in WITHOUT_TIES])
@pytest.mark.parametrize("tie", ["all", "pairs"])
def test_ties_go_to_the_lowest_index(tie, router, dispatch, rng):
    """Equal experts by index, equal tokens from left to right."""
    spec, layer = make(router, "drops", dispatch, training=True)
    kernel = rng.integers(0, 3, size=(D, E)).astype("float32")
    kernel[:, 2:] = kernel[:, :2]  # experts 2, 3 tie with 0, 1
    layer.router.kernel.assign(kernel if tie == "pairs" else kernel * 0)
    x = np.eye(D)[rng.integers(0, D, size=(B, T))].astype("float32")
    y, routes = layer(x, training=True, return_routing=True)
    wanted = bridge.run_oracle(spec, layer, x)
    bridge.assert_edges_equal(routes, wanted.edges, E)
    np.testing.assert_allclose(bridge.numpy(y), wanted.y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["relu", "silu", "gated-silu"])
def test_activations_equal_oracle(activation, rng):
    spec = reference.Spec(E, activation=activation)
    layer = bridge.make_layer(spec, dim=D)
    x = rng.normal(size=(B, T, D)).astype("float32")
    wanted = bridge.run_oracle(spec, layer, x)
    np.testing.assert_allclose(
        bridge.numpy(layer(x)), wanted.y, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    "factor,minimum,length,size,capacity",
    [
        (1.25, 4, 8, None, 4),  # ceil(2.5) = 3, the minimum is 4
        (1.25, 1, 8, None, 3),
        (1.0, 1, 9, None, 3),
        (0.01, 1, 8, None, 1),
        (64.0, 1, 8, None, 8),  # a token is at most once with an expert
        (1.0, 1, 8, 100, 4),  # 2 x 8 tokens in one group
        (1.0, 1, 8, 6, 2),
    ],
)
@pytest.mark.parametrize("k", [1, 2])
def test_capacity_is_equation_3(k, factor, minimum, length, size, capacity):
    """Tokens of the group x factor / experts, though k is 2."""
    spec = reference.Spec(
        E,
        router="top_k",
        k=2,
        capacity_factor=factor,
        min_capacity=minimum,
        group_size=size,
        training=True,
    )
    assert reference.capacity_of(spec, min(size or length, 16)) == capacity
    layer = bridge.make_layer(spec, dim=D)
    layer.router.kernel.assign(np.zeros((D, E), "float32"))
    x = np.ones((2, length, D), "float32")
    y = bridge.numpy(layer(x, training=True)).reshape(-1, D)
    kept = [
        min(capacity, len(group))
        for group in _groups(2, length, size or length)
    ]
    assert (np.abs(y).sum(-1) > 0).sum() == sum(kept)


def _groups(batch, length, size):
    tokens = np.arange(batch * length)
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]
