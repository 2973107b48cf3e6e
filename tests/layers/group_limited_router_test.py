"""Group-limited routing alone; with experts it is held to the oracle."""

import keras
import numpy as np
import pytest

import keras_switch
from tests import bridge, reference, reference_routers
from tests.layers.routing_test import build, call

E = 6


def router(**kwargs):
    arguments = {"num_expert_groups": 3, "group_limit": 1, "gate": "softmax"}
    arguments |= kwargs
    made = keras_switch.GroupLimitedRouter(**arguments)
    return build(made, E, E, np.eye(E))


# Of groups (0 1), (2 3) and (4 5).
TOKEN = np.log([[[6.0, 0.5, 3.0, 3.8, 3.0, 1.0]]])


def chosen(made, tokens=TOKEN):
    routes = call(made, tokens)
    return bridge.numpy(routes.expert_index)[0].tolist()


def test_a_group_is_ranked_by_its_two_best_experts_or_by_its_best():
    assert chosen(router()) == [3, 2]
    assert chosen(router(group_score="max")) == [0, 1]
    # The second group may be another than that of the second expert.
    assert chosen(router(group_limit=2)) == [0, 3]
    assert chosen(router(group_limit=2, k=4)) == [0, 3, 2, 1]


@pytest.mark.any_backend
@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 2, "num_expert_groups": 2, "group_limit": 1},
        {"k": 5, "num_expert_groups": 3, "group_limit": 2, "gate": "sigmoid"},
        {
            "k": 3,
            "num_expert_groups": 6,
            "group_limit": 4,
            "group_score": "max",
            "renormalize": False,
        },
    ],
)
def test_choices_and_gates_equal_the_oracle(arguments, rng):
    experts, tokens = 12, rng.normal(size=(1, 20, 5))
    kernel = rng.normal(size=(5, experts))
    bias = np.linspace(-0.1, 0.1, experts)
    arguments = {"gate": "softmax", **arguments}
    made = keras_switch.GroupLimitedRouter(**arguments)
    made = build(made, 5, experts, kernel)
    made.bias.assign(bias.astype("float32"))
    routes = bridge.routes_to_numpy(call(made, tokens))
    spec = reference.Spec(experts, router="group_limited", **arguments)
    logits = (tokens @ kernel)[0]
    gates = np.array([reference.softmax(row) for row in logits])
    if spec.gate == "sigmoid":
        gates = 1 / (1 + np.exp(-logits))
    for s, p in enumerate(gates):
        wanted = reference_routers.choose(spec, p, p + bias)
        places = np.flatnonzero(routes.token_index[0] == s)
        got = routes.expert_index[0, places].tolist()
        assert got == [expert for expert, _ in wanted]
        np.testing.assert_allclose(
            routes.gate[0, places], [gate for _, gate in wanted], rtol=1e-5
        )


@pytest.mark.any_backend
def test_a_group_of_one_expert_is_ranked_by_it():
    assert chosen(router(num_expert_groups=6, group_limit=2)) == [0, 3]


@pytest.mark.any_backend
def test_gates_are_divided_by_their_sum_or_not():
    kept = call(router(renormalize=False), TOKEN).gate
    np.testing.assert_allclose(
        bridge.numpy(kept), np.array([[3.8, 3.0]]) / 17.3, rtol=1e-5
    )
    made = call(router(), TOKEN).gate
    np.testing.assert_allclose(
        bridge.numpy(made), np.array([[3.8, 3.0]]) / 6.8, rtol=1e-5
    )


def test_the_bias_chooses_groups_and_does_not_weigh():
    made = router(group_score="max", renormalize=False)
    made.bias.assign(np.array([-1.0, 0, 0, 0, 0, 0.5], "float32"))
    routes = call(made, TOKEN)
    assert bridge.numpy(routes.expert_index)[0].tolist() == [5, 4]
    np.testing.assert_allclose(
        bridge.numpy(routes.gate), np.array([[1.0, 3.0]]) / 17.3, rtol=1e-5
    )


def test_ties_go_to_the_lowest_group_and_expert():
    assert chosen(router(), np.zeros((1, 1, E))) == [0, 1]
    tokens = np.array([[[0.0, 0, 1, 1, 1, 1]]])
    assert chosen(router(), tokens) == [2, 3]
    assert chosen(router(group_limit=2, k=3), tokens) == [2, 3, 4]


@pytest.mark.any_backend
@pytest.mark.parametrize("group_score", ["max", "top_2"])
def test_no_token_has_experts_of_more_groups(group_score, rng):
    made = build(
        keras_switch.GroupLimitedRouter(
            k=4, num_expert_groups=4, group_limit=2, group_score=group_score
        ),
        5,
        16,
        rng.normal(size=(5, 16)),
    )
    routes = call(made, rng.normal(size=(2, 50, 5)))
    groups = bridge.numpy(routes.expert_index).reshape(2, 4, 50) // 4
    experts = bridge.numpy(routes.expert_index).reshape(2, 4, 50)
    for g in range(2):
        for s in range(50):
            assert len(set(groups[g, :, s])) <= 2
            assert len(set(experts[g, :, s])) == 4


@pytest.mark.any_backend
def test_without_a_limit_it_is_loss_free(rng):
    kernel, tokens = rng.normal(size=(5, 8)), rng.normal(size=(2, 9, 5))
    bias = np.linspace(-0.3, 0.3, 8).astype("float32")
    found = []
    for made in (
        keras_switch.LossFreeRouter(k=3),
        keras_switch.GroupLimitedRouter(
            k=3, num_expert_groups=4, group_limit=4, renormalize=False
        ),
    ):
        made = build(made, 5, 8, kernel)
        made.bias.assign(bias)
        found.append(bridge.routes_to_numpy(call(made, tokens)))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_bias_learns_as_in_loss_free_balancing():
    made = router(update_rate=0.125)
    call(made, TOKEN, training=True)
    np.testing.assert_array_equal(
        bridge.numpy(made.bias), [0.125, 0.125, -0.125, -0.125, 0.125, 0.125]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_expert_groups": 0}, "num_expert_groups must be an int"),
        ({"group_limit": 0}, "group_limit must be an int at least 1"),
        ({"group_limit": 5}, "group_limit must be at most num_expert_groups"),
        ({"num_experts": 6}, "num_experts must be a multiple of num_expert_g"),
        ({"num_experts": 8, "k": 5}, "k must be at most 4, the experts of"),
        ({"num_experts": 8, "k": 9}, "k must be at most num_experts"),
        ({"group_score": "sum"}, "group_score must be one of 'max', 'top_2'"),
        ({"renormalize": "no"}, "renormalize must be True or False"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_switch.GroupLimitedRouter(**arguments)
    # A layer says the same of its own number of experts.
    if "num_experts" in arguments:
        count = arguments.pop("num_experts")
        template = keras_switch.GroupLimitedRouter(**arguments)
        with pytest.raises(ValueError, match=message):
            keras_switch.SwitchLayer(count, 4, router=template)


def test_a_config_through_keras():
    made = keras_switch.GroupLimitedRouter(
        k=3, num_expert_groups=2, group_score="max", renormalize=False
    )
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(made)
    )
    assert again.get_config() == made.get_config()
