"""In evaluation nobody else's tokens, nor padding, change a row: bit for bit.

A matrix product may round differently when it has more rows; the layer is
promised not to, where `bits.are_kept`.
"""

import numpy as np
import pytest

from tests import bits, bridge, reference

D, E, F = 32, 4, 48
ROUTERS = {
    "switch": {},
    "switch at capacity": {"eval_capacity_factor": 0.5, "min_capacity": 1},
    "switch prioritized": {"batch_prioritized": True},
    "top_k": {"router": "top_k", "k": 2},
    "expert_choice": {"router": "expert_choice", "min_capacity": 1},
}
# Evaluation without a capacity is dropless under every name.
PAIRS = [
    ("switch", "gather"),
    ("switch at capacity", "einsum"),
    ("switch at capacity", "gather"),
    ("switch prioritized", "dropless"),
    ("top_k", "einsum"),
    ("expert_choice", "einsum"),
    ("expert_choice", "gather"),
]


def make(router, dispatch, **kwargs):
    spec = reference.Spec(E, dispatch=dispatch, **ROUTERS[router], **kwargs)
    return bridge.make_layer(spec, D, F)


def run(layer, x, mask=None):
    return bridge.numpy(layer(x, padding_mask=mask, training=False))


@pytest.mark.parametrize("router,dispatch", PAIRS)
@pytest.mark.parametrize("length", [1, 8])
def test_a_row_alone_equals_the_row_in_a_batch(length, router, dispatch, rng):
    layer = make(router, dispatch)
    x = rng.normal(size=(3, length, D)).astype("float32")
    alone = np.concatenate([run(layer, row[None]) for row in x])
    bits.assert_same(run(layer, x), alone)
    bits.assert_same(run(layer, x[::-1].copy()), alone[::-1])


@pytest.mark.parametrize("router", ["switch", "top_k"])
def test_a_row_alone_equals_the_row_in_a_large_batch(router, rng):
    """288 rows against 32: XLA orders its sums by the size of a product."""
    layer = make(router, "gather")
    x = rng.normal(size=(9, 32, D)).astype("float32")
    bits.assert_same(run(layer, x)[:1], run(layer, x[:1]))


@pytest.mark.parametrize("side", ["right", "left", "middle"])
@pytest.mark.parametrize(
    "router,dispatch", [p for p in PAIRS if p[0] != "switch at capacity"]
)
def test_padding_changes_nothing(router, dispatch, side, rng):
    layer = make(router, dispatch)
    x = rng.normal(size=(3, 8, D)).astype("float32")
    plain = run(layer, x)
    at = {"right": 8, "left": 0, "middle": 3}[side]
    filler = rng.normal(size=(3, 4, D)).astype("float32")
    padded = np.concatenate([x[:, :at], filler, x[:, at:]], axis=1)
    mask = np.ones((3, 12), "int32")
    mask[:, at : at + 4] = 0
    y = run(layer, padded, mask)
    assert (y[mask == 0] == 0).all()
    bits.assert_same(y[mask == 1].reshape(plain.shape), plain)


@pytest.mark.parametrize(
    "router,dispatch", [p for p in PAIRS if p[0] != "expert_choice"]
)
def test_later_tokens_change_nothing_before_them(router, dispatch, rng):
    layer = make(router, dispatch)
    x = rng.normal(size=(3, 8, D)).astype("float32")
    plain = run(layer, x)
    x[:, 4:] = rng.normal(size=(3, 4, D))
    y = run(layer, x)
    bits.assert_same(y[:, :4], plain[:, :4])
    assert (y[:, 4:] != plain[:, 4:]).any()


@pytest.mark.parametrize("group_size", [8, 24])
def test_dropless_evaluation_does_not_see_the_groups(group_size, rng):
    x = rng.normal(size=(3, 8, D)).astype("float32")
    plain = run(make("switch", "gather"), x)
    grouped = run(make("switch", "gather", group_size=group_size), x)
    bits.assert_same(grouped, plain)


def test_step_by_step_equals_the_whole_sequence(rng):
    """A decoder feeds one token at a time."""
    layer = make("switch", "gather")
    x = rng.normal(size=(3, 8, D)).astype("float32")
    whole = run(layer, x)
    steps = [run(layer, x[:, t : t + 1]) for t in range(8)]
    np.testing.assert_allclose(
        np.concatenate(steps, axis=1), whole, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("group_size", [None, 24])
def test_another_sequence_acts_only_through_a_shared_group(
    training, group_size, rng
):
    """With groups over sequences the leak in training is stated here."""
    spec = reference.Spec(
        E, capacity_factor=1.0, min_capacity=1, group_size=group_size
    )
    layer = bridge.make_layer(spec, D, F)
    x = rng.normal(size=(3, 8, D)).astype("float32")
    plain = bridge.numpy(layer(x, training=training))
    x[0] = x[2, ::-1]  # competes for the same experts
    y = bridge.numpy(layer(x, training=training))
    leak = training and group_size is not None
    assert ((y[2] != plain[2]).any()) == leak
