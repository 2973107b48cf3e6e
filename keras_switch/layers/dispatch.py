"""Dispatch and combine: tokens to their experts and back. They move rows and
decide nothing.

Each class here takes the routes of one call, and offers `dispatch(tokens)` and
`combine(outputs)`. The three give equal results:

- `EinsumDispatch` multiplies by one-hot masks, as Mesh-TensorFlow does. Plain,
  and costs `S * C * E` work and memory for each group.
- `GatherDispatch` copies rows by integer index; gradients are copies too.
- `DroplessDispatch` sorts all rows by expert; there is no capacity.
"""

from typing import Any

from keras import ops

from keras_switch.layers.routes import RouterIndices, RouterMask
from keras_switch.ops import indexing


class EinsumDispatch:
    """Dispatch through one-hot masks.

    Args:
        routes: `RouterIndices`, fields `[G, M]`.
        tokens: int, tokens of a group, `S`.
        num_experts: int, `E`.
        capacity: int, `C`.
        choices: int, edges of a token, or `None` if irregular.
    """

    def __init__(
        self,
        routes: RouterIndices,
        tokens: Any,
        num_experts: int,
        capacity: Any,
        choices: int | None,
    ) -> None:
        experts = _is(routes.expert_index, num_experts)  # [G, M, E]
        slots = _is(routes.slot_index, capacity)  # [G, M, C]
        where = ops.einsum("gme,gmc->gmec", experts, slots)
        gate = ops.reshape(routes.gate, ops.shape(routes.gate) + (1, 1))
        # The gate of an edge without a slot may be anything: no product.
        weight = ops.where(where > 0, gate, 0.0)
        token = None
        if choices is None:  # edges lie in any order
            token = _is(routes.token_index, tokens)  # [G, M, S]
        self.mask = _by_token(where, token, choices)  # [G, S, E, C]
        self.weight = _by_token(weight, token, choices)

    def dispatch(self, tokens: Any) -> Any:
        """`[G, S, D]` -> `[G, E, C, D]`."""
        mask = ops.cast(self.mask, tokens.dtype)
        return ops.einsum("gsec,gsd->gecd", mask, tokens)

    def combine(self, outputs: Any) -> Any:
        """`[G, E, C, D]` -> `[G, S, D]`."""
        rows = ops.cast(outputs, "float32")
        # 0 times infinity is NaN, in the sum of every token: a product takes
        # what is finite, and the rest is given to the tokens that own it.
        finite = ops.where(ops.isfinite(rows), rows, 0.0)
        total = self._sum(self.weight, finite)
        inf = float("inf")
        for within, bound in ((rows < inf, inf), (rows > -inf, -inf)):
            # NaN is within neither bound: it gets both, whose sum is NaN.
            over = ops.cast(ops.logical_not(within), "float32")
            owned = self._sum(self.mask, over) > 0
            total = total + ops.where(owned, bound, 0.0)
        return ops.cast(total, outputs.dtype)

    def _sum(self, weight, rows):
        return ops.einsum("gsec,gecd->gsd", weight, rows)


class SoftDispatch:
    """Dispatch of mixtures: `RouterMask` says of what."""

    def __init__(self, routes: RouterMask) -> None:
        self.routes = routes

    def dispatch(self, tokens: Any) -> Any:
        """`[G, S, D]` -> `[G, E, P, D]`."""
        weight = ops.cast(self.routes.dispatch, tokens.dtype)
        return ops.einsum("gsep,gsd->gepd", weight, tokens)

    def combine(self, outputs: Any) -> Any:
        """`[G, E, P, D]` -> `[G, S, D]`."""
        rows = ops.cast(outputs, "float32")
        total = ops.einsum("gsep,gepd->gsd", self.routes.combine, rows)
        return ops.cast(total, outputs.dtype)


class GatherDispatch:
    """Dispatch by integer indices. Arguments as `EinsumDispatch`.

    Where tokens chose, the slots of an expert in all groups lie side by side,
    as its product takes them: what `dispatch` returns and `combine` takes is
    `[1, E, G * C, D]`. Where experts chose it is `[G, E, C, D]`.
    """

    def __init__(
        self,
        routes: RouterIndices,
        tokens: Any,
        num_experts: int,
        capacity: Any,
        choices: int | None,
    ) -> None:
        self.routes, self.tokens, self.choices = routes, tokens, choices
        groups = ops.shape(routes.gate)[0]
        kept = ops.logical_and(
            routes.expert_index < num_experts, routes.slot_index < capacity
        )
        if choices is None:
            self.kept = kept  # [G, M]
            self.shape = (groups, num_experts, capacity)
            return
        self.shape = (1, num_experts, groups * capacity)
        slots = num_experts * groups * capacity
        first = ops.arange(groups, dtype="int32") * capacity  # of a group
        slot = routes.expert_index * (groups * capacity) + routes.slot_index
        slot = ops.where(kept, slot + ops.expand_dims(first, -1), slots)
        self.rows = indexing.row_map(_one_group(slot, choices), slots)
        self.gate = _one_group(routes.gate, choices)

    def dispatch(self, tokens: Any) -> Any:
        """`[G, S, D]` -> buffers."""
        groups, size, width = ops.shape(tokens)
        if self.choices is None:
            # Experts chose: edges lie in the order of the slots.
            rows = indexing.take_rows(tokens, self.routes.token_index)
        else:
            flat = ops.reshape(tokens, (1, groups * size, width))
            rows = indexing.dispatch_rows(flat, self.rows, self.choices)
        return ops.reshape(rows, (*self.shape, width))

    def combine(self, outputs: Any) -> Any:
        """Buffers -> `[G, S, D]`."""
        groups, experts, capacity, width = ops.shape(outputs)
        outputs = ops.reshape(outputs, (groups, experts * capacity, width))
        if self.choices is not None:
            total = indexing.combine_rows(
                outputs, self.gate, self.rows, self.choices
            )
            return ops.reshape(total, (-1, self.tokens, width))
        gate = ops.expand_dims(self.routes.gate, -1)
        weighted = ops.cast(outputs, "float32") * gate
        weighted = ops.where(ops.expand_dims(self.kept, -1), weighted, 0.0)
        total = indexing.sum_by_token(
            weighted, self.routes.token_index, self.tokens
        )
        return ops.cast(total, outputs.dtype)


class GroupedGatherDispatch:
    """`GatherDispatch` that leaves each group by itself, since groups lie on
    different devices: buffers are `[G, E, C, D]`. Tokens chose."""

    def __init__(
        self,
        routes: RouterIndices,
        tokens: Any,
        num_experts: int,
        capacity: Any,
        choices: int,
    ) -> None:
        self.choices = choices
        self.shape = (ops.shape(routes.gate)[0], num_experts, capacity)
        slots = num_experts * capacity
        kept = ops.logical_and(
            routes.expert_index < num_experts, routes.slot_index < capacity
        )
        slot = routes.expert_index * capacity + routes.slot_index
        slot = ops.where(kept, slot, slots)
        self.rows = indexing.row_map(slot, slots)
        self.gate = routes.gate

    def dispatch(self, tokens: Any) -> Any:
        """`[G, S, D]` -> `[G, E, C, D]`."""
        rows = indexing.dispatch_rows(tokens, self.rows, self.choices)
        return ops.reshape(rows, (*self.shape, ops.shape(tokens)[-1]))

    def combine(self, outputs: Any) -> Any:
        """`[G, E, C, D]` -> `[G, S, D]`."""
        groups, experts, capacity, width = ops.shape(outputs)
        outputs = ops.reshape(outputs, (groups, experts * capacity, width))
        return indexing.combine_rows(
            outputs, self.gate, self.rows, self.choices
        )


class DroplessDispatch:
    """Dispatch without a capacity: rows of all groups sorted by expert.

    Args:
        routes: `RouterIndices`, fields `[G, M]`; `choices` edges a token.
        tokens: int, tokens of a group, `S`.
        num_experts: int, `E`.
        choices: int, edges of a token.

    `sizes` is int32 `[E]`, the rows of each expert.
    """

    def __init__(
        self,
        routes: RouterIndices,
        tokens: Any,
        num_experts: int,
        choices: int,
    ) -> None:
        groups, edges = ops.shape(routes.expert_index)
        self.shape, self.choices = (groups, tokens), choices
        total = groups * edges
        expert_index = _one_group(routes.expert_index, choices)  # [1, N]
        self.gate = _one_group(routes.gate, choices)
        order, _ = indexing.sort_by_expert(expert_index, num_experts)
        places = ops.expand_dims(ops.arange(total, dtype="int32"), 0)
        place = indexing.invert(order, places, total, total, fill=0)
        sizes = indexing.expert_sizes(expert_index, num_experts + 1)
        self.sizes = sizes[0, :num_experts]
        routed = expert_index < num_experts
        edge_slot = ops.where(routed, place, total)
        # Rows of edges that go nowhere are last and belong to no expert; what
        # flows back to them is 0 as they are in no edge's slot.
        sent = ops.expand_dims(ops.sum(self.sizes), -1)
        slot_edge = ops.where(places < sent, order, total)
        self.rows = indexing.RowMap(edge_slot, slot_edge)

    def dispatch(self, tokens: Any) -> Any:
        """`[G, S, D]` -> `[N, D]`, sorted by expert."""
        groups, size, width = ops.shape(tokens)
        flat = ops.reshape(tokens, (1, groups * size, width))
        return indexing.dispatch_rows(flat, self.rows, self.choices)[0]

    def combine(self, outputs: Any) -> Any:
        """`[N, D]` -> `[G, S, D]`."""
        total = indexing.combine_rows(
            ops.expand_dims(outputs, 0), self.gate, self.rows, self.choices
        )
        return ops.reshape(total, self.shape + (ops.shape(outputs)[-1],))


class RowDispatch:
    """Dispatch of a decode step: a row of each edge, where it is.

    Args:
        routes: `RouterIndices`, fields `[G, K]`, of groups of one token.
        num_experts: int, `E`.

    `expert_index` is int32 `[G * K]`, the expert of each row.
    """

    def __init__(self, routes: RouterIndices, num_experts: int) -> None:
        # The gate of an edge that goes nowhere may be anything.
        routed = routes.expert_index < num_experts
        self.gate = ops.where(routed, routes.gate, 0.0)
        self.shape = ops.shape(routes.gate)  # G, K
        self.expert_index = ops.reshape(routes.expert_index, (-1,))

    def dispatch(self, tokens: Any) -> Any:
        """`[G, 1, D]` -> `[G * K, D]`."""
        return ops.repeat(tokens[:, 0], self.shape[1], axis=0)

    def combine(self, outputs: Any) -> Any:
        """`[G * K, D]` -> `[G, 1, D]`."""
        rows = ops.reshape(outputs, (*self.shape, -1))
        weighted = ops.cast(rows, "float32") * ops.expand_dims(self.gate, -1)
        total = ops.sum(weighted, axis=1, keepdims=True)
        return ops.cast(total, outputs.dtype)


def _one_group(values: Any, choices: int) -> Any:
    """`[G, K * S]` -> `[1, K * G * S]`, still choice-major."""
    groups, edges = ops.shape(values)
    if choices > 1:
        shape = (groups, choices, edges // choices)
        values = ops.transpose(ops.reshape(values, shape), (1, 0, 2))
    return ops.reshape(values, (1, groups * edges))


def _is(index: Any, size: Any) -> Any:
    """float32 `[..., size]`, one-hot; zeros for an index out of range."""
    places = ops.arange(size, dtype="int32")
    return ops.cast(ops.expand_dims(index, -1) == places, "float32")


def _by_token(edges: Any, token: Any | None, choices: int | None) -> Any:
    """`[G, M, E, C]` summed by token: `[G, S, E, C]`."""
    if choices is None:
        return ops.einsum("gms,gmec->gsec", token, edges)
    groups, count, experts, capacity = ops.shape(edges)
    shape = (groups, choices, count // choices, experts, capacity)
    return ops.sum(ops.reshape(edges, shape), axis=1)
