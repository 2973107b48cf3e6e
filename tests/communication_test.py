"""What an all-to-all would send: by hand, by chance, and from real routes."""

import itertools

import numpy as np
import pytest

import keras_switch
from keras_switch.communication import all_to_all_bytes, expected_devices
from keras_switch.layers import RouterIndices, RouterMask


def routes_of(experts, slots=None):
    """`experts`: `[G, K][S]`, as choices of tokens; all gates 1."""
    experts = np.asarray(experts, "int32")  # [G, K, S]
    groups, choices, tokens = experts.shape
    token = np.broadcast_to(np.arange(tokens), experts.shape)
    slots = np.zeros(experts.shape) if slots is None else np.asarray(slots)
    fields = (token, experts, slots, np.ones(experts.shape))
    return RouterIndices(*(f.reshape(groups, choices * tokens) for f in fields))


def test_by_hand():
    """Four experts on two devices, rows of 3 numbers of 2 bytes."""
    routes = routes_of([[[0, 0, 2], [1, 3, 4]], [[4, 1, 3], [4, 2, 2]]])
    sent = all_to_all_bytes(routes, 4, 2, 3)
    # Tokens (0 1), (0 3), (2); none, (1 2), (3 2).
    assert sent.by_edge == 9 * 6
    assert sent.by_device == (1 + 2 + 1 + 2 + 1) * 6
    assert sent.num_tokens == 5
    assert sent.devices_per_token == 7 / 5
    assert sent.by_slot is None


def test_what_is_over_the_capacity_is_not_sent():
    routes = routes_of([[[0, 0, 2], [1, 3, 1]]], [[[0, 1, 0], [0, 0, 1]]])
    sent = all_to_all_bytes(routes, 4, 2, 3, capacity=1, itemsize=4)
    assert sent.by_slot == 4 * 1 * 12
    assert sent.by_edge == 4 * 12
    assert sent.by_device == 3 * 12


def test_no_token_at_all():
    sent = all_to_all_bytes(routes_of([[[4, 4]]]), 4, 2, 3)
    assert sent[1:] == (0, 0, 0, 0.0)


@pytest.mark.parametrize(
    ("experts", "k", "groups"), [(4, 2, 2), (6, 3, 3), (6, 1, 2), (4, 4, 4)]
)
def test_the_expectation_is_that_of_all_choices(experts, k, groups):
    size = experts // groups
    counts = [
        len({e // size for e in chosen})
        for chosen in itertools.combinations(range(experts), k)
    ]
    assert expected_devices(experts, k, groups) == pytest.approx(
        np.mean(counts)
    )


def test_the_figures_of_the_docs():
    """DeepSeek-V3's 8 of 256 experts on 8 nodes, of which a token sees 4."""
    assert f"{expected_devices(256, 8, 8):.2f}" == "5.29"
    assert f"{expected_devices(256, 8, 8, 4):.2f}" == "3.63"
    # V2's 6 of 160 on 8 devices, 3 of them.
    assert f"{expected_devices(160, 6, 8):.2f}" == "4.46"
    assert f"{expected_devices(160, 6, 8, 3):.2f}" == "2.77"


def test_a_limit_is_at_most_the_groups_and_the_choices():
    assert expected_devices(16, 4, 4, 1) == 1
    assert expected_devices(16, 1, 4) == pytest.approx(1)
    assert expected_devices(4, 4, 4) == 4


def routes_and_capacity(router, rng):
    layer = keras_switch.SwitchLayer(
        16, 4, router=router, capacity_factor=4.0, eval_capacity_factor=4.0
    )
    layer.build((None, None, 8))
    kernel = layer.router.kernel
    kernel.assign(rng.normal(size=kernel.shape).astype("float32"))
    x = rng.normal(size=(2, 400, 8)).astype("float32")
    _, routes = layer(x, return_routing=True)
    return routes, 4 * 400 // 16


def test_real_routes_of_a_limited_router(rng):
    """A limit saves rows to devices; the buffers are what they were."""
    found = {}
    for limit in (1, 2, 4):
        router = keras_switch.GroupLimitedRouter(
            k=4, num_expert_groups=4, group_limit=limit
        )
        routes, capacity = routes_and_capacity(router, rng)
        sent = all_to_all_bytes(routes, 16, 4, 8, capacity=capacity)
        assert sent.devices_per_token <= limit
        found[limit] = sent
    assert found[1].devices_per_token == 1
    ratio = [found[n].by_device / found[n].by_edge for n in (1, 2, 4)]
    assert ratio[0] < ratio[1] < ratio[2] < 1
    assert len({sent.by_slot for sent in found.values()}) == 1
    # Near what chance would have, though a router is none.
    wanted = expected_devices(16, 4, 4)
    assert found[4].devices_per_token == pytest.approx(wanted, rel=0.15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 4, 3), "num_experts must be a multiple of num_groups"),
        ((4, 0, 3), "num_groups must be an int at least 1"),
        ((4, 2, 0), "hidden_dim must be"),
        ((4, 2, 3, 0), "capacity must be"),
        ((4, 2, 3, None, 0), "itemsize must be"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        all_to_all_bytes(routes_of([[[0]]]), *arguments)


def test_what_is_no_limit():
    with pytest.raises(ValueError, match="group_limit must be an int"):
        expected_devices(8, 2, 4, 5)
    with pytest.raises(ValueError, match="k must be an int at least 1 and b"):
        expected_devices(8, 5, 4, 2)


def test_routes_that_mix_tokens_are_refused():
    mask = RouterMask(np.zeros((1, 2, 2, 1)), np.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="received a RouterMask"):
        all_to_all_bytes(mask, 2, 2, 3)
