"""The three dispatches alone, on routes written by hand and at random."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers import dispatch
from keras_switch.layers.routes import RouterIndices
from tests import bridge

D = 3
CAPACITY = {
    "einsum": dispatch.EinsumDispatch,
    "gather": dispatch.GatherDispatch,
}


def routes(token, expert, slot, gate):
    index = [np.array(v, "int32") for v in (token, expert, slot)]
    fields = [*index, np.array(gate, "float32")]
    return RouterIndices(*map(ops.convert_to_tensor, fields))


def random_routes(rng, groups, tokens, experts, choices, nowhere=0.2):
    """Distinct experts of a token, queues in edge order, some edges lost."""
    expert = np.stack(
        [
            np.stack(
                [rng.permutation(experts)[:choices] for _ in range(tokens)]
            )
            for _ in range(groups)
        ]
    )
    expert = expert.transpose(0, 2, 1).reshape(groups, choices * tokens)
    expert[rng.random(expert.shape) < nowhere] = experts
    slot = np.zeros_like(expert)
    for g, row in enumerate(expert):
        for m in range(len(row)):
            slot[g, m] = sum(row[:m] == row[m])
    token = np.tile(np.arange(tokens), (groups, choices))
    return token, expert, slot, rng.random(expert.shape)


@pytest.mark.parametrize("kind", CAPACITY)
def test_three_tokens_two_experts_capacity_one(kind):
    """The third token wants a slot the first has; its row is 0."""
    edges = routes([[0, 1, 2]], [[1, 0, 1]], [[0, 0, 1]], [[0.5, 2.0, 9.0]])
    rows = CAPACITY[kind](edges, 3, 2, 1, 1)
    tokens = ops.convert_to_tensor([[[1.0], [2.0], [4.0]]], "float32")
    buffers = rows.dispatch(tokens)
    np.testing.assert_array_equal(bridge.numpy(buffers), [[[[2.0]], [[1.0]]]])
    y = bridge.numpy(rows.combine(buffers * 10.0))
    np.testing.assert_array_equal(y, [[[5.0], [40.0], [0.0]]])


def by_group(kind, buffers, shape):
    """`[G, E, C, D]` of what a dispatch calls its buffers."""
    if kind == "einsum":
        return buffers
    groups, experts, capacity, width = shape
    by_expert = buffers.reshape(experts, groups, capacity, width)
    return by_expert.transpose(1, 0, 2, 3)


@pytest.mark.parametrize("choices", [1, 2, 3])
@pytest.mark.parametrize("capacity", [1, 2, 7])
@pytest.mark.parametrize("kind", CAPACITY)
def test_capacity_dispatch(kind, capacity, choices, rng):
    groups, tokens, experts = 2, 7, 4
    edges = random_routes(rng, groups, tokens, experts, choices)
    x = rng.normal(size=(groups, tokens, D)).astype("float32")
    rows = CAPACITY[kind](routes(*edges), tokens, experts, capacity, choices)
    buffers = bridge.numpy(rows.dispatch(ops.convert_to_tensor(x)))
    shape = (groups, experts, capacity, D)
    together = (1, experts, groups * capacity, D)
    assert buffers.shape == (together if kind == "gather" else shape)
    scale = rng.normal(size=buffers.shape).astype("float32")
    y = bridge.numpy(rows.combine(ops.convert_to_tensor(buffers * scale)))
    got, scale = (by_group(kind, array, shape) for array in (buffers, scale))
    wanted = np.zeros(x.shape)
    for g, m in np.ndindex(edges[0].shape):
        token, expert, slot, gate = (field[g, m] for field in edges)
        if expert < experts and slot < capacity:
            np.testing.assert_array_equal(got[g, expert, slot], x[g, token])
            row = x[g, token] * scale[g, expert, slot]
            wanted[g, token] += gate * row
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CAPACITY)
def test_experts_that_choose(kind, rng):
    """Edges in any order, a token any number of times."""
    token = [[0, 2, 2, 1]]
    edges = routes(token, [[0, 0, 1, 2]], [[0, 1, 0, 1]], [[1.0, 2, 3, 4]])
    rows = CAPACITY[kind](edges, 4, 2, 2, None)
    x = rng.normal(size=(1, 4, D)).astype("float32")
    y = rows.combine(rows.dispatch(ops.convert_to_tensor(x)))
    wanted = x * np.array([1.0, 0.0, 5.0, 0.0])[None, :, None]
    np.testing.assert_allclose(bridge.numpy(y), wanted, rtol=1e-6)


@pytest.mark.parametrize("choices", [1, 2, 3])
def test_dropless(choices, rng):
    groups, tokens, experts = 2, 7, 4
    edges = random_routes(rng, groups, tokens, experts, choices)
    x = rng.normal(size=(groups, tokens, D)).astype("float32")
    rows = dispatch.DroplessDispatch(routes(*edges), tokens, experts, choices)
    sizes = bridge.numpy(rows.sizes)
    wanted_sizes = [(edges[1] == e).sum() for e in range(experts)]
    np.testing.assert_array_equal(sizes, wanted_sizes)
    got = bridge.numpy(rows.dispatch(ops.convert_to_tensor(x)))
    starts = np.cumsum([0, *sizes])
    factor = np.zeros((len(got), 1), "float32")
    for e in range(experts):  # the rows of an expert are its tokens'
        mine = got[starts[e] : starts[e + 1]]
        pairs = np.argwhere(edges[1] == e)
        sent = np.array([x[g, edges[0][g, m]] for g, m in pairs])
        sent = sent.reshape(-1, D)
        np.testing.assert_array_equal(np.sort(mine, 0), np.sort(sent, 0))
        factor[starts[e] : starts[e + 1]] = e + 1
    y = bridge.numpy(rows.combine(ops.convert_to_tensor(got * factor)))
    wanted = np.zeros(x.shape)
    for g, m in np.ndindex(edges[0].shape):
        token, expert, _, gate = (field[g, m] for field in edges)
        if expert < experts:
            wanted[g, token] += gate * (expert + 1) * x[g, token]
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CAPACITY)
def test_what_a_lost_edge_carries_is_nothing(kind):
    """Not 0 times its gate: the gate may be infinite."""
    edges = routes([[0, 1]], [[2, 0]], [[0, 1]], [[np.inf, np.nan]])
    rows = CAPACITY[kind](edges, 2, 2, 1, 1)
    y = rows.combine(rows.dispatch(ops.ones((1, 2, D), "float32")))
    assert (bridge.numpy(y) == 0).all()


def overflowing(rng):
    """Two choices of four tokens, capacity 2; what is not finite in slots.

    Token 0 has plus and minus infinity, token 1 minus infinity and a number,
    token 2 NaN and a number; token 3 has nothing to do with them.
    """
    edges = routes(
        [[0, 1, 2, 3, 0, 1, 2, 3]],
        [[0, 0, 1, 1, 2, 3, 3, 2]],
        [[0, 1, 0, 1, 0, 0, 1, 1]],
        [rng.random(8) + 0.1],
    )
    outputs = rng.normal(size=(1, 4, 2, D)).astype("float32")
    outputs[0, 0, 0, 0] = outputs[0, 0, 0, 1] = np.inf
    outputs[0, 2, 0, 0] = -np.inf
    outputs[0, 0, 1, 2] = -np.inf
    outputs[0, 1, 0, 1] = np.nan
    return edges, outputs


@pytest.mark.parametrize("kind", CAPACITY)
def test_what_overflows_reaches_its_own_token_only(kind, rng):
    edges, outputs = overflowing(rng)
    rows = CAPACITY[kind](edges, 4, 4, 2, 2)
    y = bridge.numpy(rows.combine(ops.convert_to_tensor(outputs)))[0]
    gate = bridge.numpy(edges.gate)[0]
    token, expert, slot = (bridge.numpy(field)[0] for field in edges[:3])
    wanted = np.zeros((4, D), "float32")
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        for m in range(8):
            wanted[token[m]] += gate[m] * outputs[0, expert[m], slot[m]]
    assert np.isnan(wanted).sum() == 2 and np.isinf(wanted).sum() == 2
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", CAPACITY)
def test_what_overflows_where_experts_choose(kind):
    """Token 1 has no expert, token 2 has two."""
    edges = routes([[0, 2, 2, 0]], [[0, 0, 1, 2]], [[0, 1, 0, 1]], [[1.0] * 4])
    rows = CAPACITY[kind](edges, 3, 2, 2, None)
    outputs = np.array([[[[1.0], [np.inf]], [[2.0], [np.nan]]]], "float32")
    y = bridge.numpy(rows.combine(ops.convert_to_tensor(outputs)))
    np.testing.assert_array_equal(y, [[[1.0], [0.0], [np.inf]]])


@pytest.mark.parametrize("choices", [1, 2])
def test_rows_of_a_decode_step(choices, rng):
    """Equal to the dropless dispatch, whatever a lost edge carries."""
    groups, experts = 5, 3
    token, expert, slot, gate = random_routes(rng, groups, 1, experts, choices)
    gate[expert == experts] = np.inf
    edges = routes(token, expert, slot, gate)
    x = rng.normal(size=(groups, 1, D)).astype("float32")
    step = dispatch.RowDispatch(edges, experts)
    mine = bridge.numpy(step.expert_index)
    np.testing.assert_array_equal(mine, expert.reshape(-1))
    sent = bridge.numpy(step.dispatch(ops.convert_to_tensor(x)))
    np.testing.assert_array_equal(sent, np.repeat(x[:, 0], choices, 0))
    # What `matmul_by_row` gives: nothing for a row of no expert.
    factor = np.where(mine < experts, mine + 1, 0)[:, None].astype("float32")
    y = bridge.numpy(step.combine(ops.convert_to_tensor(sent * factor)))
    wanted = np.zeros(x.shape)
    for g, m in np.argwhere(expert < experts):
        wanted[g, 0] += gate[g, m] * (expert[g, m] + 1) * x[g, 0]
    assert (expert == experts).any()
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
