"""Writes T5X folders as T5X does, for the tests.

By the layout of T5X's `checkpoints.py` and flax's `serialization.py`, not by
the reader under test.
"""

import itertools
import pathlib

import msgpack
import numpy as np
import tensorstore
from keras import ops

from keras_switch.convert import rules
from keras_switch.convert.checkpoint import theirs

NDARRAY, SCALAR = 1, 3


def packed(array):
    """An array as flax packs it."""
    array = np.asarray(array)
    parts = (array.shape, array.dtype.name, array.tobytes())
    data = msgpack.packb(parts, use_bin_type=True)
    return msgpack.ExtType(NDARRAY if array.ndim else SCALAR, data)


def chunked(array, size):
    """An array as flax packs it if it is too large, `size` values a piece."""
    flat = array.reshape(-1)
    pieces = [flat[i : i + size] for i in range(0, flat.size, size)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(array.shape)},
        "chunks": {str(i): packed(piece) for i, piece in enumerate(pieces)},
    }


def stored(folder, name, array, compressor="gzip", chunks=None):
    """Writes an array in zarr; returns the spec that stands for it."""
    dotted = "target." + name.replace("/", ".")
    metadata = {
        "compressor": compressor and {"id": compressor},
        "shape": list(array.shape),
        "chunks": list(chunks or array.shape),
    }
    spec = {
        "driver": "zarr",
        "dtype": array.dtype.name,
        "kvstore": {"driver": "file", "path": dotted},
        "metadata": metadata,
    }
    place = {"driver": "file", "path": str(pathlib.Path(folder) / dotted)}
    there = {**spec, "kvstore": place}
    store = tensorstore.open(there, create=True, open=True).result()
    store[...] = array
    return tensorstore.Spec(spec).to_json()


def tree_of(flat):
    """`{"a/b": x}` -> `{"a": {"b": x}}`."""
    tree = {}
    for name, value in flat.items():
        *above, last = name.split("/")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def pack(folder, target, version=3, step=7):
    """Writes the file `checkpoint`.

    Args:
        folder: Where to.
        target: By name, what stands in the place of each parameter.
        version: Of the format.
        step: Training step.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    target = tree_of(target)
    # An optimizer as Adafactor leaves it; it must not be read.
    slots = {"m": packed(np.zeros(1, "float32")), "v": packed(np.zeros(1))}
    state = {"step": packed(np.int32(step)), "param_states": {"a": slots}}
    contents = {
        "version": version,
        "optimizer": {"target": target, "state": state},
    }
    (folder / "checkpoint").write_bytes(msgpack.packb(contents))


def write(folder, parameters, **options):
    """Writes a whole folder: vectors in the file, the rest in zarr.

    Args:
        folder: Where to.
        parameters: Arrays by name.
        **options: Of `stored`.
    """
    target = {
        name: stored(folder, name, array, **options)
        if array.ndim > 1
        else packed(array)
        for name, array in parameters.items()
    }
    pack(folder, target)
    return pathlib.Path(folder)


def parameters_of(backbone):
    """A backbone's weights as T5X has them, by name."""
    variables = {v.path: v for v in rules.variables(backbone)}
    parameters = {}
    for entry in rules.entries(backbone, rules.T5X):
        values = ops.convert_to_numpy(variables[entry.path])
        parameters |= theirs(entry, values)
    return parameters


def scanned(parameters, blocks, share_tables=False):
    """The same parameters as a model trained with `scan_layers` has them.

    Args:
        parameters: Arrays by name.
        blocks: How many layers a block has, by stack.
        share_tables: Whether the table of relative positions stays one for
            the stack, which Flaxformer does not allow.
    """
    rest = dict(parameters)
    layered = {}
    for stack, block in blocks.items():
        names = [n for n in rest if n.startswith(f"{stack}/layers_")]
        depth = len({n.split("/")[1] for n in names})
        table = f"{stack}/relpos_bias/rel_embedding"
        if not share_tables:
            shared = rest.pop(table)
            for i in range(depth):
                name = f"{stack}/layers_{i}/relpos_bias/rel_embedding"
                rest[name] = shared
                names.append(name)
        for j, name in itertools.product(range(block), names):
            _, layer, leaf = name.split("/", 2)
            if layer != f"layers_{j}":
                continue
            parts = [
                rest[f"{stack}/layers_{i}/{leaf}"]
                for i in range(j, depth, block)
            ]
            layered[f"{stack}/{stack}/subblock_{j}/{leaf}"] = np.stack(parts, 1)
        for name in names:
            del rest[name]
    return {**rest, **layered}
