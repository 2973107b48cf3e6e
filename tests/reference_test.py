"""The oracle itself: by hand where it is small, by differences where not."""

import numpy as np
import pytest

from tests import reference, reference_gradients

E, D, F = 3, 4, 5


def make_weights(rng, activation, num_experts=E):
    names = ["wi_0", "wi_1"] if activation.startswith("gated-") else ["wi"]
    weights = {n: rng.normal(size=(num_experts, D, F)) for n in names}
    weights["wo"] = rng.normal(size=(num_experts, F, D))
    weights["kernel"] = rng.normal(size=(D, num_experts))
    return weights


def numerical_gradient(f, array, eps=1e-6):
    result = np.zeros(array.shape)
    for i in np.ndindex(array.shape):
        old = array[i]
        array[i] = old + eps
        up = f()
        array[i] = old - eps
        down = f()
        array[i] = old
        result[i] = (up - down) / (2 * eps)
    return result


NO_LOSSES = {
    "load_balancing_loss_weight": 0.0,
    "z_loss_weight": 0.0,
    "importance_loss_weight": 0.0,
}
# Not trained, by router.
FROZEN = {
    "hash": ("kernel", "table", "bias"),
    "random": ("kernel", "table", "bias"),
}
IDS = np.array([[0, 1, 2, 1, 0, 3], [3, 3, 2, 1, 0, 4]])
SPECS = {
    "switch": {},
    "switch drops": {"capacity_factor": 0.5, "min_capacity": 1},
    "switch prioritized": {
        "capacity_factor": 0.5,
        "min_capacity": 1,
        "batch_prioritized": True,
    },
    "groups": {"group_size": 5, "capacity_factor": 0.8, "min_capacity": 1},
    "gated": {"activation": "gated-gelu", "dispatch": "dropless"},
    "gated silu": {"activation": "gated-silu"},
    "top_k": {"router": "top_k", "k": 2},
    "top_k one": {"router": "top_k", "k": 1},
    "top_k drops": {
        "router": "top_k",
        "k": 3,
        "capacity_factor": 0.6,
        "min_capacity": 1,
    },
    "top_k threshold": {
        "router": "top_k",
        "k": 2,
        "second_policy": "threshold",
        "second_threshold": 0.3,
    },
    "expert_choice": {"router": "expert_choice", "min_capacity": 1},
    "expert_choice capped": {
        "router": "expert_choice",
        "max_experts": 1,
        "min_capacity": 1,
    },
    "shared": {"activation": "gated-silu", "capacity_factor": 0.5},
    "hash": {"router": "hash", "k": 2, **NO_LOSSES},
    "random": {"router": "random", **NO_LOSSES},
    "no_token_left_behind": {
        "router": "no_token_left_behind",
        "k": 2,
        "capacity_factor": 0.8,
        "min_capacity": 1,
    },
    "loss_free": {"router": "loss_free", "k": 2, "gate": "sigmoid"},
    "loss_free softmax": {"router": "loss_free", "k": 2},
    "group_limited": {
        "router": "group_limited",
        "k": 2,
        "gate": "sigmoid",
        "num_expert_groups": 3,
        "group_limit": 2,
    },
    "base": {
        "router": "base",
        "gate": "sigmoid",
        "capacity_factor": 0.8,
        "min_capacity": 1,
        **NO_LOSSES,
    },
    "noisy_top_k": {
        "router": "noisy_top_k",
        "k": 2,
        "load_balancing_loss_weight": 0.0,
        "load_loss_weight": 0.9,
        "capacity_factor": 0.8,
        "min_capacity": 1,
    },
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_central_differences(name, training):
    rng = np.random.default_rng(len(name))
    weighted = {
        "load_balancing_loss_weight": 0.7,
        "z_loss_weight": 0.3,
        "importance_loss_weight": 0.5,
    }
    spec = reference.Spec(E, training=training, **(weighted | SPECS[name]))
    weights = make_weights(rng, spec.activation)
    if spec.router == "noisy_top_k":
        weights["noise_kernel"] = rng.normal(size=(D, E))
    if name == "shared":
        for key in ("wi_0", "wi_1", "wo"):
            shape = (2 * F, D) if key == "wo" else (D, 2 * F)
            weights[f"shared_{key}"] = rng.normal(size=shape)
    weights["bias"] = np.array([0.3, 0.0, -0.3])
    weights["table"] = np.array([[0, 1, 2, 1, 0], [2, 0, 1, 2, 1]])
    x = rng.normal(size=(2, 6, D))
    dy = rng.normal(size=x.shape)
    mask = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])

    def objective():
        out = reference.switch_layer(spec, x, weights, mask, IDS)
        loss = reference.total_loss(spec, out.losses) if training else 0.0
        return (out.y * dy).sum() + loss

    grads = reference_gradients.gradients(spec, x, weights, dy, mask, IDS)
    frozen = FROZEN.get(spec.router, ("table", "bias"))
    if spec.router == "noisy_top_k" and not training:  # there is no noise
        frozen = (*frozen, "noise_kernel")
    for key, array in {"x": x, **weights}.items():
        if key in frozen:
            continue
        wanted = numerical_gradient(objective, array)
        np.testing.assert_allclose(
            grads[key], wanted, rtol=1e-5, atol=1e-7, err_msg=key
        )
        assert np.abs(wanted).max() > 1e-3, key


def test_three_tokens_two_experts_capacity_one():
    spec = reference.Spec(2, capacity_factor=0.1, min_capacity=1, training=True)
    x = np.array([[[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    weights = {
        "kernel": np.eye(2),
        "wi": np.stack([np.eye(2), np.eye(2)]),
        "wo": np.stack([10 * np.eye(2), 100 * np.eye(2)]),
    }
    out = reference.switch_layer(spec, x, weights)
    p = 1 / (1 + np.exp([-2.0, -1.0, -1.0]))
    np.testing.assert_allclose(
        out.y[0], [[20 * p[0], 0.0], [0.0, 0.0], [0.0, 100 * p[2]]]
    )
    assert [(e.expert, e.slot, e.kept) for e in out.edges[0]] == [
        (0, 0, True),
        (0, 1, False),
        (1, 0, True),
    ]
    mean = (p[0] + p[1] + 1 - p[2]) / 3
    assert np.isclose(
        out.losses["load_balancing_loss"],
        2 * (2 / 3 * mean + 1 / 3 * (1 - mean)),
    )
    assert np.isclose(out.statistics["dropped_fraction"], 1 / 3)
    assert np.isclose(out.statistics["max_mean_load"], 4 / 3)
    assert out.statistics["dead_expert_fraction"] == 0
    assert out.statistics["tokens"] == 3


def test_padding_is_zero_nan_is_nan_and_neither_takes_a_slot():
    spec = reference.Spec(1, capacity_factor=0.1, min_capacity=2, training=True)
    x = np.ones((1, 4, 2))
    x[0, 1, 0] = np.nan
    weights = {
        "kernel": np.zeros((2, 1)),
        "wi": np.eye(2)[None],
        "wo": np.eye(2)[None],
    }
    out = reference.switch_layer(spec, x, weights, np.array([[0, 1, 1, 1]]))
    np.testing.assert_array_equal(out.y[0, [0, 2, 3]], [[0, 0], [1, 1], [1, 1]])
    assert np.isnan(out.y[0, 1]).all()
    assert out.statistics["tokens"] == 2


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 100])
def test_flattened_groups_hold_every_token_once(size):
    x = np.arange(16.0).reshape(2, 4, 2) + 1
    if size == 0:
        x = x[:0]
        size = 3
    tokens, real = reference.group(x, None, size)
    assert (tokens[real] == x.reshape(-1, 2)).all()
    assert tokens.shape[1] == min(size, x.shape[0] * x.shape[1])
