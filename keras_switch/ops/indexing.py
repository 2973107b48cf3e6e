"""Rows of tensors taken, sorted and queued by integer indices.

Letters: `G` groups, `S` tokens of a group, `M` edges of a group (one edge is
one token on its way to one expert), `L` slots, `D` hidden size.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_switch.ops.export import is_exporting
from keras_switch.ops.layout import is_distributed

_INT32_MAX = 2**31 - 1


def static_size(*dims: Any) -> int | None:
    """The product of dimensions, or `None` where one is only known at run
    time (a TensorFlow graph with an unknown batch or length)."""
    product = 1
    for dim in dims:
        if not isinstance(dim, int):
            return None
        product *= dim
    return product


def has_values(x: Any) -> bool:
    """Whether Python may read a tensor now. Eager JAX could too, but would
    compile anew for every value."""
    if keras.backend.backend() == "torch":
        return x.device.type != "meta" and not is_exporting()
    if keras.backend.backend() == "tensorflow":
        return hasattr(x, "numpy")
    return False


def take_rows(x: Any, index: Any) -> Any:
    """Takes rows of each group: `[G, N, D]`, `[G, M]` -> `[G, M, D]`.

    Every index must be in range: what an index outside does differs between
    backends.
    """
    if keras.backend.backend() == "jax":
        # A gather with batch dimensions: under a mesh it stays on the device
        # that holds the group.
        import jax

        return jax.vmap(lambda rows, i: rows.at[i].get(mode="clip"))(x, index)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.gather(x, index, batch_dims=1)
    return take_rows_reference(x, index)


def take_rows_reference(x: Any, index: Any) -> Any:
    """The plain form of `take_rows`, on flattened groups."""
    groups, rows, width = ops.shape(x)
    first = ops.expand_dims(ops.arange(groups, dtype="int32") * rows, -1)
    flat = ops.reshape(index + first, (groups * ops.shape(index)[1],))
    taken = ops.take(ops.reshape(x, (groups * rows, width)), flat, axis=0)
    return ops.reshape(taken, (groups, ops.shape(index)[1], width))


def queue_positions(expert_index: Any, num_experts: int) -> Any:
    """Each edge's place in the queue before its expert.

    One packed integer sort (`expert * M + edge`, so that keys are unique and
    stability is free) instead of a cumulative sum over one-hot rows, which
    takes O(M * num_experts) time and memory.

    Args:
        expert_index: int32 `[G, M]`, in priority order, each in
            `[0, num_experts]`; `num_experts` is the queue of edges that go
            nowhere.
        num_experts: int.

    Returns:
        int32 `[G, M]`: how many earlier edges of the group want the same
        expert.

    Raises:
        ValueError: where `(num_experts + 1) * M` does not fit in int32.
    """
    groups, edges = ops.shape(expert_index)
    order, experts = sort_by_expert(expert_index, num_experts)  # [G, M] each
    sizes = expert_sizes(expert_index, num_experts + 1)  # [G, E + 1]
    starts = ops.cumsum(sizes, axis=1) - sizes
    places = ops.expand_dims(ops.arange(edges, dtype="int32"), 0)
    rank = places - ops.take_along_axis(starts, experts, axis=1)  # [G, M]
    return invert(order, rank, edges, edges, fill=0)


def sort_by_expert(expert_index: Any, num_experts: int) -> tuple[Any, Any]:
    """Edges of each group in the order of their experts.

    Returns:
        Two int32 `[G, M]`: the edges, and their experts (ascending).
    """
    edges = ops.shape(expert_index)[1]
    size = static_size(edges)
    if size is not None and (num_experts + 1) * size > _INT32_MAX:
        raise ValueError(
            "(num_experts + 1) * edges per group must fit in int32; received "
            f"num_experts={num_experts}, {size} edges. Use a smaller "
            "group_size."
        )
    places = ops.expand_dims(ops.arange(edges, dtype="int32"), 0)
    key = ops.sort(expert_index * edges + places, axis=-1)
    return key % edges, key // edges


def expert_sizes(expert_index: Any, num_experts: int) -> Any:
    """Edges of each group that want each expert: int32 `[G, num_experts]`."""
    # Counts are int32: a sum of ones in a narrow float stops growing early.
    ones = ops.ones_like(expert_index)
    return _scatter(expert_index, ones, num_experts, 0, "add")


def invert(index: Any, values: Any, edges: Any, slots: Any, fill: int) -> Any:
    """Writes `values[g, m]` at `index[g, m]`: `[G, M]` -> int32 `[G, slots]`.

    An index equal to `slots` is written nowhere; a slot that no index names
    holds `fill`.
    """
    values = ops.broadcast_to(values, ops.shape(index))
    # The extra column is the bin: an index never leaves its range.
    return _scatter(index, values, slots + 1, fill)[:, :slots]


def _scatter(index, values, size, fill, reduction=None):
    """`values[g, m]` to `index[g, m]`: `[G, M]` -> int32 `[G, size]`."""
    if is_distributed() and keras.backend.backend() == "tensorflow":
        return _scatter_by_comparison(index, values, size, fill)
    if is_distributed():
        # By group, so that it stays on the device that holds the group.
        import jax

        def of_group(index, values):
            empty = jax.numpy.full((size,), fill, "int32")
            if reduction == "add":
                return empty.at[index].add(values)
            return empty.at[index].set(values)

        return jax.vmap(of_group)(index, values)
    groups, edges = ops.shape(index)
    first = ops.expand_dims(ops.arange(groups, dtype="int32"), -1)
    flat = ops.reshape(index + first * size, (groups * edges, 1))
    empty = ops.full((groups * size,), fill, dtype="int32")
    values = ops.reshape(values, (groups * edges,))
    filled = ops.scatter_update(empty, flat, values, reduction=reduction)
    return ops.reshape(filled, (groups, size))


def _scatter_by_comparison(index, values, size, fill):
    """The plain form of `_scatter`: DTensor gathers what it scatters."""
    places = ops.arange(size, dtype="int32")
    hit = ops.expand_dims(index, -1) == places  # [G, M, size]
    values = ops.expand_dims(ops.cast(values, "int32"), -1)
    found = ops.sum(ops.where(hit, values, 0), axis=1)
    return ops.where(ops.any(hit, axis=1), ops.cast(found, "int32"), fill)


class RowMap(NamedTuple):
    """Which edge sits in which slot: a partial permutation, both ways round.

    `edge_slot` is int32 `[G, M]`, `L` where the edge has no slot;
    `slot_edge` is int32 `[G, L]`, `M` where the slot is empty. Edges are
    choice-major: edge `k * S + s` is choice `k` of token `s`.
    """

    edge_slot: Any
    slot_edge: Any


def row_map(edge_slot: Any, slots: Any) -> RowMap:
    """The map of edges to slots (int32 `[G, M]`, `slots` = none)."""
    groups, edges = ops.shape(edge_slot)
    ids = ops.expand_dims(ops.arange(edges, dtype="int32"), 0)
    ids = ops.broadcast_to(ids, (groups, edges))
    return RowMap(edge_slot, invert(edge_slot, ids, edges, slots, fill=edges))


def dispatch_rows(tokens: Any, rows: RowMap, choices: int) -> Any:
    """Copies tokens to their slots: `[G, S, D]` -> `[G, L, D]`.

    A partial permutation's gradient is the gather by its inverse, so neither
    direction scatters rows. An empty slot holds some token's copy: nothing
    reads what becomes of it, and its gradient is zero.
    """

    def forward(tokens):
        def grad(*args, upstream=None):
            return _sum_choices(upstream_of(args, upstream), rows, choices)

        return take_rows(tokens, rows.slot_edge % ops.shape(tokens)[1]), grad

    return ops.custom_gradient(forward)(tokens)


def combine_rows(outputs: Any, gate: Any, rows: RowMap, choices: int) -> Any:
    """Brings the slots' rows back to their tokens, times the gate.

    Args:
        outputs: `[G, L, D]`.
        gate: float32 `[G, M]`, `M = choices * S`.
        rows: where each edge sits.
        choices: int, edges of a token.

    Returns:
        `[G, S, D]` in the dtype of `outputs`; exactly 0 for a token without
        a slot.
    """

    def forward(outputs, gate):
        weighted = _taken(outputs, rows) * ops.expand_dims(gate, -1)
        # Not gate * kept: 0 times an infinite row would be NaN.
        weighted = ops.where(_kept(outputs, rows), weighted, 0.0)

        def grad(*args, upstream=None):
            upstream = ops.cast(upstream_of(args, upstream), "float32")
            return (
                ops.cast(_weighted_back(upstream, gate, rows), outputs.dtype),
                _gate_slope(upstream, outputs, rows, choices),
            )

        return ops.cast(_fold_choices(weighted, choices), outputs.dtype), grad

    return ops.custom_gradient(forward)(outputs, gate)


def upstream_of(args: tuple, upstream: Any) -> Any:
    """The gradient from above: torch hands it over by keyword, after the
    saved inputs; the others as the only argument."""
    return args[0] if upstream is None else upstream


def _kept(outputs: Any, rows: RowMap) -> Any:
    return ops.expand_dims(rows.edge_slot < ops.shape(outputs)[1], -1)


def _taken(outputs: Any, rows: RowMap) -> Any:
    """Each edge's row in float32, some other row where it has none."""
    index = ops.minimum(rows.edge_slot, ops.shape(outputs)[1] - 1)
    return ops.cast(take_rows(outputs, index), "float32")  # [G, M, D]


def _weighted_back(upstream: Any, gate: Any, rows: RowMap) -> Any:
    """Gradient of the slots: the token's, times the gate; `[G, L, D]`."""
    edges = ops.shape(gate)[1]
    filled = rows.slot_edge < edges  # [G, L]
    edge = ops.minimum(rows.slot_edge, edges - 1)
    weight = ops.take_along_axis(gate, edge, axis=1)
    weight = ops.expand_dims(ops.where(filled, weight, 0.0), -1)
    return take_rows(upstream, edge % ops.shape(upstream)[1]) * weight


def _gate_slope(upstream: Any, outputs: Any, rows: RowMap, choices: int) -> Any:
    """Gradient of the gates: token's gradient dot expert's row; `[G, M]`."""
    every = ops.tile(upstream, (1, choices, 1)) if choices > 1 else upstream
    slope = ops.sum(_taken(outputs, rows) * every, axis=-1)
    return ops.where(_kept(outputs, rows)[:, :, 0], slope, 0.0)


def _sum_choices(values: Any, rows: RowMap, choices: int) -> Any:
    """Rows of slots summed by token: `[G, L, D]` -> `[G, S, D]`."""
    taken = take_rows(
        values, ops.minimum(rows.edge_slot, ops.shape(values)[1] - 1)
    )
    zero = ops.zeros((), dtype=values.dtype)
    kept = ops.where(_kept(values, rows), taken, zero)
    return _fold_choices(kept, choices)


def _fold_choices(values: Any, choices: int) -> Any:
    """`[G, K * S, D]` -> `[G, S, D]`, the choices of a token summed."""
    if choices == 1:
        return values
    groups, edges, width = ops.shape(values)
    shape = (groups, choices, edges // choices, width)
    return ops.sum(ops.reshape(values, shape), axis=1)


def sum_by_token(values: Any, token_index: Any, tokens: Any) -> Any:
    """Edges in any order summed by token: `[G, M, D]` -> `[G, S, D]`.

    For routers that give a token any number of experts (expert choice).
    """
    groups, edges, width = ops.shape(values)
    first = ops.expand_dims(ops.arange(groups, dtype="int32") * tokens, -1)
    flat = ops.reshape(token_index + first, (groups * edges, 1))
    total = ops.scatter_update(
        ops.zeros((groups * tokens, width), dtype=values.dtype),
        flat,
        ops.reshape(values, (groups * edges, width)),
        reduction="add",
    )
    return ops.reshape(total, (groups, tokens, width))
