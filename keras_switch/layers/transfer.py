"""How tokens get to the experts and back: on one device, or over a mesh.

On one device rows of all groups lie side by side. Over a mesh a group lies on
one device and an expert on another: buffers `[G, E, C, D]` are split by
groups, then by experts, then by groups again. Each change is an all-to-all,
and so is its gradient: four in a training step.
"""

import functools
from typing import Any

import keras
from keras import ops

from keras_switch.layers.dispatch import (
    DroplessDispatch,
    EinsumDispatch,
    GatherDispatch,
    GroupedGatherDispatch,
    RowDispatch,
    SoftDispatch,
)
from keras_switch.layers.routes import RouterIndices, RouterMask
from keras_switch.ops import layout, row_matmul
from keras_switch.ops.indexing import queue_positions, static_size
from keras_switch.ops.switch import switch

CAPACITY_DISPATCHES = {"einsum": EinsumDispatch, "gather": GatherDispatch}
DISPATCHES = (*CAPACITY_DISPATCHES, "dropless")
# Times the mean expert that the largest may have, over a mesh. Each is a
# branch of the program; above the last there is one that holds everything.
_CAPACITIES = (2, 4)
# With fewer rows on a device than this, that one is small enough.
_FEW_ROWS = 32


def transfer(
    layer: Any, tokens: Any, routes: RouterIndices, capacity: Any, training: Any
) -> Any:
    """Sends tokens to their experts and brings back what these make of them.

    Args:
        layer: A `SwitchLayer`.
        tokens: `[G, S, D]`.
        routes: `RouterIndices`, fields `[G, M]`, or `RouterMask`.
        capacity: int, slots of an expert in a group; `None` if dropless.
        training: bool.

    Returns:
        `[G, S, D]`.
    """
    if isinstance(routes, RouterMask):
        mixed = SoftDispatch(routes)
        outputs = _at_experts(layer, mixed.dispatch(tokens), training)
        return mixed.combine(outputs)
    if layout.is_distributed():
        return _over_mesh(layer, tokens, routes, capacity, training)
    size, choices = ops.shape(tokens)[1], layer.router.num_choices
    dropless = capacity is None and not layer.experts.quantized
    if dropless and static_size(size) == 1 and not training:
        step = RowDispatch(routes, layer.num_experts)
        if row_matmul.serves(step.expert_index.shape[0], layer.num_experts):
            outputs = layer.experts(
                step.dispatch(tokens), expert_index=step.expert_index
            )
            return step.combine(outputs)
    if dropless:
        rows = DroplessDispatch(routes, size, layer.num_experts, choices)
        outputs = layer.experts(
            rows.dispatch(tokens), sizes=rows.sizes, training=training
        )
        return rows.combine(outputs)
    # Quantized kernels have no grouped product: a buffer that holds the
    # whole group drops nothing.
    capacity = size if capacity is None else capacity
    kind = CAPACITY_DISPATCHES.get(layer.dispatch, GatherDispatch)
    buffers = kind(routes, size, layer.num_experts, capacity, choices)
    outputs = layer.experts(buffers.dispatch(tokens), training=training)
    return buffers.combine(outputs)


def _over_mesh(layer, tokens, routes, capacity, training):
    if capacity is None:
        return _dropless_over_mesh(layer, tokens, routes, training)
    choices = layer.router.num_choices
    if layer.dispatch == "einsum":
        kind = EinsumDispatch
    else:
        kind = GatherDispatch if choices is None else GroupedGatherDispatch
    size = ops.shape(tokens)[1]
    buffers = kind(routes, size, layer.num_experts, capacity, choices)
    outputs = _at_experts(layer, buffers.dispatch(tokens), training)
    return buffers.combine(outputs)


def _at_experts(layer, buffers, training):
    """`[G, E, C, D]` -> the same, by way of the devices of the experts."""
    buffers = layout.lay_out(buffers, f"{layer.path}/buffers_at_tokens")
    buffers = layout.lay_out(buffers, f"{layer.path}/buffers_at_experts")
    outputs = layer.experts(buffers, training=training)
    outputs = layout.lay_out(outputs, f"{layer.path}/buffers_at_experts")
    return layout.lay_out(outputs, f"{layer.path}/buffers_at_tokens")


def _dropless_over_mesh(layer, tokens, routes, training):
    """Dropless, through buffers whose capacity is chosen at run time.

    What a token gets does not depend on its group: all tokens of a device
    make one, so that the largest expert is near the mean.
    """
    if training and layer.experts.dropout:
        raise ValueError(
            "dispatch must be 'gather' or 'einsum' for training with dropout "
            "over a mesh: what is drawn within a choice between buffers would "
            f"be drawn again; received dispatch={layer.dispatch!r}, dropout="
            f"{layer.experts.dropout}."
        )
    if training and layout.by_dtensor():
        raise ValueError(
            "dispatch must be 'gather' or 'einsum' for training over a mesh on "
            "TensorFlow: DTensor has no gradient of a choice between buffers; "
            f"received dispatch={layer.dispatch!r}."
        )
    choices, experts = layer.router.num_choices, layer.num_experts
    shape = ops.shape(tokens)
    shards = layout.data_shards()
    groups = 1 if shape[0] % shards else shards
    tokens = ops.reshape(tokens, (groups, -1, shape[-1]))
    size = ops.shape(tokens)[1]
    expert_index = _regroup(routes.expert_index, groups, choices)
    gate = _regroup(routes.gate, groups, choices)
    slot_index = queue_positions(expert_index, experts)

    kernels = layer.experts.weights  # frozen ones, too
    # DTensor can compile no gradient of ours within a condition.
    kind = EinsumDispatch if layout.by_dtensor() else GroupedGatherDispatch

    def through(capacity, tokens, expert_index, slot_index, gate, *values):
        routes = RouterIndices(None, expert_index, slot_index, gate)
        buffers = kind(routes, size, experts, capacity, choices)
        # Kernels are arguments like the rest, to have a gradient.
        with keras.StatelessScope(list(zip(kernels, values, strict=True))):
            outputs = _at_experts(layer, buffers.dispatch(tokens), training)
        return buffers.combine(outputs)

    values = (ops.convert_to_tensor(kernel) for kernel in kernels)
    operands = (tokens, expert_index, slot_index, gate, *values)
    capacities = _capacities(size, choices, experts)
    if len(capacities) == 1:
        return ops.reshape(through(size, *operands), shape)
    routed = expert_index < experts
    largest = ops.max(ops.where(routed, slot_index, -1)) + 1
    index = sum(ops.cast(largest > c, "int32") for c in capacities[:-1])
    branches = [functools.partial(through, c) for c in capacities]
    return ops.reshape(switch(index, branches, *operands), shape)


def _capacities(size, choices, experts):
    """Ascending; the last holds every token of a group."""
    if size <= _FEW_ROWS:
        return [size]
    wanted = {-(-size * choices * n // experts) for n in _CAPACITIES}
    return [*sorted(c for c in wanted if c < size), size]


def _regroup(values, groups, choices):
    """`[G, K * S]` -> `[groups, K * (G / groups) * S]`, choice-major."""
    edges = ops.shape(values)[1]
    values = ops.reshape(values, (groups, -1, choices, edges // choices))
    values = ops.transpose(values, (0, 2, 1, 3))
    return ops.reshape(values, (groups, -1))
