"""Checkpoints of T5X and Flaxformer, in.

Names are T5X's without the leading `target/`. In a checkpoint that was
trained with `scan_layers`, the layers of a stack are stacked along axis 1 of
each array; they are taken apart, so that it reads like any other.
"""

import os
import pathlib
import re
from typing import Any

import numpy as np

from keras_switch.convert import rules
from keras_switch.convert.checkpoint import assign
from keras_switch.convert.t5x_msgpack import read_leaves
from keras_switch.files import CheckpointError
from keras_switch.models import SwitchBackbone
from keras_switch.models.preset_budget import check_size

_SCANNED = re.compile(r"(encoder|decoder)/\1/(?:subblock_(\d+)/)?(.+)")
_TABLE = "relpos_bias/rel_embedding"
_LOGITS = "decoder/logits_dense/kernel"
_ROUTER = "/mlp/router/router_weights/w/kernel"
_STACKS = ("encoder", "decoder")
_MAX_LAYERS = 1000


def load_t5x(
    folder: str | os.PathLike, *, max_bytes: int | None = None, **arguments: Any
) -> SwitchBackbone:
    """Makes a backbone from a T5X checkpoint, with its weights.

    Args:
        folder: Folder of one checkpoint (`checkpoint_1000000`).
        max_bytes: Refuse a model whose weights would take more memory;
            `None`: more than is free.
        **arguments: Arguments of `SwitchBackbone`, such as `dropout`: what
            does not follow from shapes, or is to be another.

    Returns:
        A `SwitchBackbone`.

    Raises:
        CheckpointError: if anything in the folder is not as it must be, or
            is no part of a `SwitchBackbone`.
        ImportError: if msgpack or tensorstore is missing.

    Example:

    ```python
    backbone = load_t5x("t5_1_1_small/checkpoint_1000000", dropout=0.0)
    ```
    """
    checkpoint = T5XCheckpoint(folder)
    arguments = {**read_arguments(checkpoint), **arguments}
    check_size(checkpoint.folder, arguments, max_bytes)
    backbone = SwitchBackbone(**arguments)
    # Layers that are stored together come together: each array is read once.
    entries = sorted(
        rules.entries(backbone, rules.T5X),
        key=lambda entry: checkpoint.stored_in(entry.sources[0]),
    )
    assign(
        backbone,
        entries,
        checkpoint.read,
        checkpoint.shapes,
        file=checkpoint.folder,
    )
    return backbone


class T5XCheckpoint:
    """The parameters of a T5X checkpoint; values are read when asked for.

    What is wrong with the folder is found when this is made, but for values
    that cannot be read. Of a scanned checkpoint it is assumed, and checked by
    shapes, that layers are stacked along axis 1 (T5X's `scan_axis=1`), that
    `subblock_j` of `n` holds layers `j`, `n + j`, `2 n + j` and so on, and
    that a stack is scanned as a whole.

    Flaxformer's scanned models have a table of relative positions in each
    layer, where `SwitchBackbone` has one in a stack: tables that are equal
    count as one, and others are refused when they are read.

    Args:
        folder: Folder of one checkpoint.

    Attributes:
        folder: `pathlib.Path`.
        shapes: Shapes of the parameters, by name.
        dtypes: Names of their dtypes, by name: float32, float16 or bfloat16.
        step: The training step, or `None`.

    Raises:
        CheckpointError: if the folder is not a T5X checkpoint.
        ImportError: if msgpack is missing.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = pathlib.Path(folder)
        self._leaves, self.step = read_leaves(self.folder)
        # For each name, the leaf and the layer in it; for a table of relative
        # positions those of all layers.
        self._parts = _unstack(self.folder, self._leaves)
        _share_tables(self.folder, self._parts)
        self.shapes = {name: self._shape(name) for name in self._parts}
        self.dtypes = {
            name: self._leaves[leaf].dtype
            for name, ((leaf, _), *_) in self._parts.items()
        }
        self._held = (None, None)

    def _shape(self, name):
        shapes = set()
        for leaf, layer in self._parts[name]:
            shape = self._leaves[leaf].shape
            shapes.add(shape if layer is None else (shape[0], *shape[2:]))
        if len(shapes) > 1:
            raise CheckpointError(
                self.folder, name, "of one shape in all layers", sorted(shapes)
            )
        return shapes.pop()

    def stored_in(self, name: str) -> str:
        """Name of the array that holds a parameter, maybe of many layers."""
        return self._parts[name][0][0] if name in self._parts else name

    def read(self, name: str) -> np.ndarray:
        """Reads a parameter.

        The last array of many layers is held, so that reading its layers one
        after the other reads it once.

        Args:
            name: One of `shapes`.

        Returns:
            float32, of its shape.

        Raises:
            CheckpointError: if it cannot be read.
            ImportError: if tensorstore is missing.
        """
        first, *others = self._parts[name]
        values = self._part(*first)
        for leaf, layer in others:
            if not np.array_equal(values, self._part(leaf, layer)):
                raise CheckpointError(
                    self.folder,
                    name,
                    "the same in every layer, as SwitchBackbone has it",
                    f"another in {leaf}",
                )
        return values

    def _part(self, leaf, layer):
        if layer is None:
            return self._leaves[leaf].load()
        if self._held[0] != leaf:
            self._held = (None, None)  # goes before the next one comes
            self._held = leaf, self._leaves[leaf].load()
        return self._held[1][:, layer].copy()


def _unstack(folder, leaves):
    """By unscanned name, the leaf and the layer in it (`None`: all of it)."""
    parts = {}

    def add(name, leaf, layer):
        if name in parts:
            raise CheckpointError(folder, name, "there once", "it twice")
        parts[name] = [(leaf, layer)]

    scanned = {stack: [] for stack in _STACKS}
    for leaf in leaves:
        match = _SCANNED.fullmatch(leaf)
        if match is None:
            add(leaf, leaf, None)
        else:
            stack, block, rest = match.groups()
            scanned[stack].append((leaf, int(block or 0), rest))
    for stack, found in scanned.items():
        length = _length(folder, leaves, stack, [leaf for leaf, *_ in found])
        blocks = {block for _, block, _ in found}
        if blocks != set(range(len(blocks))):
            raise CheckpointError(
                folder, stack, "in subblocks from 0", sorted(blocks)
            )
        for leaf, block, rest in found:
            for layer in range(length):
                index = layer * len(blocks) + block
                add(f"{stack}/layers_{index}/{rest}", leaf, layer)
    return parts


def _length(folder, leaves, stack, found):
    """How often a stack was scanned: the size of axis 1 in all its leaves."""
    norm = f"{stack}/{stack}_norm/scale"
    width = leaves[norm].shape if norm in leaves else None
    length = None
    for leaf in found:
        shape = leaves[leaf].shape
        length = shape[1] if length is None and len(shape) > 1 else length
        right = len(shape) > 1 and shape[1] == length <= _MAX_LAYERS
        if leaf.endswith("_layer_norm/scale") and width is not None:
            # A norm's one other axis tells the layers' axis from the width.
            right = shape == (*width, length)
        if not right:
            raise CheckpointError(
                folder,
                leaf,
                f"stacked along axis 1, at most {_MAX_LAYERS}, as the others",
                f"shape {shape}",
            )
    return length


def _share_tables(folder, parts):
    """Makes the tables of a stack's layers one, where it has none itself."""
    for stack in _STACKS:
        depth = len(_layers(parts, stack))
        names = [f"{stack}/layers_{i}/{_TABLE}" for i in range(depth)]
        there = [name for name in names if name in parts]
        if not there or f"{stack}/{_TABLE}" in parts:
            continue
        if there != names:
            raise CheckpointError(
                folder, there[0], "in every layer or in none", "some"
            )
        tables = [part for name in names for part in parts.pop(name)]
        # Layers of one array stand together, so that it is read once.
        parts[f"{stack}/{_TABLE}"] = sorted(tables, key=lambda part: part[0])


def _layers(names, stack):
    """Indices of the layers of a stack that any of the names is in."""
    matches = (
        re.match(rf"{stack}/layers_(\d+)(?:/|$)", name) for name in names
    )
    return {int(match[1]) for match in matches if match}


def read_arguments(checkpoint: T5XCheckpoint) -> dict[str, Any]:
    """The arguments of `SwitchBackbone` that follow from names and shapes.

    Gated feed-forwards are taken for gated-gelu and others for relu, which is
    what T5X and Flaxformer have; dropout, capacities and the largest distance
    of relative positions stand nowhere.

    Args:
        checkpoint: The checkpoint.

    Returns:
        Arguments by name; `encoder_sparse_step` and `decoder_sparse_step` are
        lists of layers.

    Raises:
        CheckpointError: if they follow from none, or do not agree.
    """
    depths = {stack: _depth(checkpoint, stack) for stack in _STACKS}
    layers = [f"{s}/layers_{i}" for s in _STACKS for i in range(depths[s])]
    sparse = [layer for layer in layers if layer + _ROUTER in checkpoint.shapes]
    dense = [layer for layer in layers if layer not in sparse]
    gated = any(name.endswith("/wi_0/kernel") for name in checkpoint.shapes)
    wi = "wi_0/kernel" if gated else "wi/kernel"

    def shape(names, *sizes):
        return _shape(checkpoint, names, sizes)

    # Each size is that of an array in every layer, so that no model is built
    # which is much larger than the checkpoint.
    vocabulary_size, hidden_dim = shape(["token_embedder/embedding"], "V", "D")
    heads, buckets = shape([f"{stack}/{_TABLE}" for stack in _STACKS], "N", "B")
    queries = [
        f"{layer}/{'' if layer.startswith('encoder') else 'self_'}attention"
        "/query/kernel"
        for layer in layers
    ]
    _, inner_dim = shape(queries, hidden_dim, "N H")
    if inner_dim % heads:
        raise CheckpointError(
            checkpoint.folder, queries[0], f"for {heads} heads", inner_dim
        )
    _, num_experts = shape(
        [layer + _ROUTER for layer in sparse], hidden_dim, "E"
    )
    names = [f"{layer}/mlp/expert/{wi}" for layer in sparse]
    *_, width = shape(names, num_experts, hidden_dim, "F")
    extra = _extra(checkpoint, sparse, wi)
    names = [f"{layer}/mlp/{wi}" for layer in dense]
    _, width = shape(names + extra, hidden_dim, width)
    arguments = {
        "vocabulary_size": vocabulary_size,
        "hidden_dim": hidden_dim,
        "intermediate_dim": width,
        "num_heads": heads,
        "key_value_dim": inner_dim // heads,
        "num_experts": num_experts if sparse else None,
        "activation": "gated-gelu" if gated else "relu",
        "relative_attention_num_buckets": buckets,
        "tie_embedding_weights": _LOGITS not in checkpoint.shapes,
        "extra_feed_forward": bool(extra),
    }
    for stack in _STACKS:
        arguments[f"num_{stack}_layers"] = depths[stack]
        arguments[f"{stack}_sparse_step"] = sorted(_layers(sparse, stack))
    return arguments


def _extra(checkpoint, sparse, wi):
    """Kernels of ST-MoE's dense layers, beside all sparse ones or none."""
    names = [f"{layer}/extra_mlp/{wi}" for layer in sparse]
    return names if any(name in checkpoint.shapes for name in names) else []


def _shape(checkpoint, names, sizes):
    """The one shape of parameters; a size not known yet is a letter."""
    for name in names:
        shape = checkpoint.shapes.get(name)
        if shape is None:
            raise CheckpointError(checkpoint.folder, name, "there", "nothing")
        if len(shape) != len(sizes) or any(
            type(wanted) is int and size != wanted
            for size, wanted in zip(shape, sizes, strict=True)
        ):
            wanted = ", ".join(map(str, sizes))
            raise CheckpointError(
                checkpoint.folder, name, f"of shape ({wanted})", shape
            )
        sizes = shape
    return sizes


def _depth(checkpoint, stack):
    layers = _layers(checkpoint.shapes, stack)
    if not layers or layers != set(range(len(layers))):
        raise CheckpointError(
            checkpoint.folder,
            f"layers of the {stack}",
            "there from 0 without a gap",
            sorted(layers),
        )
    return len(layers)
