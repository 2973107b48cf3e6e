"""Queues, gathers and their gradients against NumPy loops."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import indexing
from tests import bridge

G, S, D, E = 3, 7, 5, 4


def loop_positions(expert_index):
    """How many earlier edges of the group want the same expert."""
    result = np.zeros_like(expert_index)
    for g, row in enumerate(expert_index):
        for m in range(len(row)):
            result[g, m] = sum(row[:m] == row[m])
    return result


@pytest.mark.parametrize("num_experts", [1, 2, E, 64])
@pytest.mark.parametrize("shape", [(G, 11), (1, 1), (2, 64), (0, 5), (2, 0)])
def test_queue_positions(shape, num_experts, rng):
    index = rng.integers(0, num_experts + 1, size=shape).astype("int32")
    got = bridge.numpy(
        indexing.queue_positions(ops.convert_to_tensor(index), num_experts)
    )
    assert got.dtype == "int32"
    np.testing.assert_array_equal(got, loop_positions(index))


@pytest.mark.parametrize("count", [320, 5000])
def test_queue_positions_are_exact_for_one_crowded_expert(count):
    """A cumulative sum in bfloat16 stops at 256, in float16 at 2048."""
    index = np.ones((1, count), "int32")
    got = bridge.numpy(
        indexing.queue_positions(ops.convert_to_tensor(index), 3)
    )
    np.testing.assert_array_equal(got[0], np.arange(count))


def test_queue_positions_refuse_what_int32_cannot_hold():
    """Sort keys reach (num_experts + 1) * edges."""
    index = ops.zeros((1, 1024), dtype="int32")
    with pytest.raises(ValueError, match="num_experts=2097152"):
        indexing.queue_positions(index, 2**21)


def test_sort_by_expert_is_stable(rng):
    index = rng.integers(0, E + 1, size=(G, 20)).astype("int32")
    order, experts = map(
        bridge.numpy, indexing.sort_by_expert(ops.convert_to_tensor(index), E)
    )
    wanted = np.argsort(index, axis=-1, kind="stable")
    np.testing.assert_array_equal(order, wanted)
    np.testing.assert_array_equal(experts, np.sort(index, axis=-1))


@pytest.mark.parametrize("shape", [(G, 20), (0, 20), (2, 0)])
def test_expert_sizes(shape, rng):
    index = rng.integers(0, E, size=shape).astype("int32")
    got = bridge.numpy(indexing.expert_sizes(ops.convert_to_tensor(index), E))
    wanted = [np.bincount(row, minlength=E) for row in index]
    np.testing.assert_array_equal(got, np.reshape(wanted, (shape[0], E)))


@pytest.mark.parametrize("fn", ["take_rows", "take_rows_reference"])
def test_take_rows(fn, rng, gradients):
    x = rng.normal(size=(G, S, D)).astype("float32")
    index = rng.integers(0, S, size=(G, 9)).astype("int32")
    dy = rng.normal(size=(G, 9, D)).astype("float32")
    weight = ops.convert_to_tensor(dy)
    take = getattr(indexing, fn)
    wanted = np.stack([rows[i] for rows, i in zip(x, index, strict=True)])
    got = take(ops.convert_to_tensor(x), ops.convert_to_tensor(index))
    np.testing.assert_array_equal(bridge.numpy(got), wanted)
    _, (grad,), _ = gradients(
        lambda x: ops.sum(take(x, ops.convert_to_tensor(index)) * weight), [x]
    )
    dx = np.zeros_like(x)
    for g in range(G):
        np.add.at(dx[g], index[g], dy[g])
    np.testing.assert_allclose(grad, dx, rtol=1e-5, atol=1e-6)


def random_slots(rng, edges, slots):
    """Edges to distinct slots, some edges without one: `slots`."""
    wide = np.concatenate([np.arange(slots), np.full(edges, slots)])
    return np.stack([rng.permutation(wide)[:edges] for _ in range(G)])


def test_row_map_is_a_partial_permutation(rng):
    edge_slot = random_slots(rng, 2 * S, 6).astype("int32")
    rows = indexing.row_map(ops.convert_to_tensor(edge_slot), 6)
    slot_edge = bridge.numpy(rows.slot_edge)
    wanted = np.full((G, 6), 2 * S)
    for g, m in np.ndindex(edge_slot.shape):
        if edge_slot[g, m] < 6:
            wanted[g, edge_slot[g, m]] = m
    np.testing.assert_array_equal(slot_edge, wanted)
    np.testing.assert_array_equal(bridge.numpy(rows.edge_slot), edge_slot)


@pytest.mark.parametrize("slots", [1, 6, 2 * S + 3])
@pytest.mark.parametrize("choices", [1, 2, 3])
def test_dispatch_and_combine(choices, slots, rng, gradients):
    """Values and gradients, beside loops: `sum(combine(f(dispatch)))`."""
    edge_slot = random_slots(rng, choices * S, slots).astype("int32")
    rows = indexing.row_map(ops.convert_to_tensor(edge_slot), slots)
    tokens, dy = rng.normal(size=(2, G, S, D)).astype("float32")
    gate = rng.random((G, choices * S)).astype("float32")
    scale = rng.normal(size=(G, slots, D)).astype("float32")

    def fast(tokens, gate, scale):
        buffers = indexing.dispatch_rows(tokens, rows, choices)
        return indexing.combine_rows(buffers * scale, gate, rows, choices)

    y = np.zeros((G, S, D))
    grads = [np.zeros(a.shape) for a in (tokens, gate, scale)]
    for g, m in np.ndindex(edge_slot.shape):
        slot, s = edge_slot[g, m], m % S
        if slot < slots:
            out = tokens[g, s] * scale[g, slot]
            y[g, s] += gate[g, m] * out
            grads[0][g, s] += dy[g, s] * gate[g, m] * scale[g, slot]
            grads[1][g, m] = (dy[g, s] * out).sum()
            grads[2][g, slot] = dy[g, s] * gate[g, m] * tokens[g, s]
    got = fast(*map(ops.convert_to_tensor, (tokens, gate, scale)))
    np.testing.assert_allclose(bridge.numpy(got), y, rtol=1e-5, atol=1e-6)
    _, got_grads, _ = gradients(
        lambda *args: ops.sum(fast(*args) * ops.convert_to_tensor(dy)),
        [tokens, gate, scale],
    )
    for got_grad, wanted in zip(got_grads, grads, strict=True):
        np.testing.assert_allclose(got_grad, wanted, rtol=1e-5, atol=1e-5)


def test_combine_leaves_out_what_no_edge_names(rng):
    """A row of an empty slot, infinite or not, reaches no token."""
    edge_slot = np.array([[1, 3, 3]], "int32")  # slots 0 and 2 stay empty
    rows = indexing.row_map(ops.convert_to_tensor(edge_slot), 3)
    outputs = np.array([[[np.inf], [2.0], [np.nan]]], "float32")
    gate = np.ones((1, 3), "float32")
    got = indexing.combine_rows(
        ops.convert_to_tensor(outputs), ops.convert_to_tensor(gate), rows, 1
    )
    np.testing.assert_array_equal(bridge.numpy(got), [[[2.0], [0.0], [0.0]]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_combine_weighs_in_float32(dtype):
    """Two choices that cancel in half precision only by luck."""
    rows = indexing.row_map(ops.convert_to_tensor([[0, 1]], "int32"), 2)
    outputs = ops.cast([[[256.0], [1.0]]], dtype)
    gate = ops.convert_to_tensor([[1.0, 1.0]], "float32")
    got = indexing.combine_rows(outputs, gate, rows, 2)
    assert keras.backend.standardize_dtype(got.dtype) == dtype
    wanted = bridge.numpy(ops.cast(ops.cast([[[257.0]]], dtype), "float32"))
    got = bridge.numpy(ops.cast(got, "float32"))
    np.testing.assert_array_equal(got, wanted)


def test_sum_by_token(rng, gradients):
    values, dy = rng.normal(size=(2, G, 11, D)).astype("float32")
    dy = dy[:, :S]
    index = rng.integers(0, S, size=(G, 11)).astype("int32")
    wanted = np.zeros((G, S, D))
    for g, m in np.ndindex(index.shape):
        wanted[g, index[g, m]] += values[g, m]

    def fast(values):
        return indexing.sum_by_token(values, ops.convert_to_tensor(index), S)

    got = bridge.numpy(fast(ops.convert_to_tensor(values)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    _, (grad,), _ = gradients(
        lambda v: ops.sum(fast(v) * ops.convert_to_tensor(dy)), [values]
    )
    wanted = np.stack([d[i] for d, i in zip(dy, index, strict=True)])
    np.testing.assert_allclose(grad, wanted, rtol=1e-6)


def test_static_size():
    assert indexing.static_size(2, 3) == 6
    assert indexing.static_size() == 1
    assert indexing.static_size(2, None) is None
