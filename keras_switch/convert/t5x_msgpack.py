"""The file `checkpoint` of a T5X folder, read without trusting it.

It is msgpack as flax writes it: maps of maps, and in their leaves arrays (an
extension type) or, for an array that lies in zarr, a tensorstore spec.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_switch.convert.t5x_zarr import (
    Leaf,
    array_bytes,
    check_dtype,
    check_file,
    check_shape,
    stored_array,
)
from keras_switch.files import CheckpointError

FILE = "checkpoint"
# T5X keeps in this file what its partitioner does not split: megabytes at
# most. The limit leaves room for whole small models.
MAX_BYTES = 1 << 30
MAX_DEPTH = 32
# A model of 48 layers with its optimizer has some 100,000 entries, and no map
# or list of more than 100.
MAX_ENTRIES = 1 << 19
MAX_LENGTH = 1 << 10
# T5X refuses the versions before these as well.
_VERSIONS = (2, 3)
_KEY = re.compile(r"\w{1,64}", re.ASCII)
_CHUNKED = "__msgpack_chunked_array__"
_NDARRAY, _SCALAR = 1, 3  # flax's extension types


def read_leaves(
    folder: str | os.PathLike,
) -> tuple[dict[str, Leaf], int | None]:
    """Lists the parameters of a T5X checkpoint; the optimizer is left out.

    Args:
        folder: Holds `checkpoint`.

    Returns:
        The parameters by name (`"encoder/layers_0/mlp/wi/kernel"`), and the
        training step, `None` if it is not in the file.

    Raises:
        CheckpointError: if the file is not what T5X writes, or a parameter is
            not where and what it must be.
        ImportError: if msgpack is missing.
    """
    folder = pathlib.Path(folder)
    optimizer = _optimizer(folder / FILE, _unpack(*_read(folder)))
    leaves = {
        name: _leaf(folder, name, value)
        for name, value in _walk(folder / FILE, optimizer["target"])
    }
    return leaves, _step(folder / FILE, optimizer)


def _read(folder):
    path = folder / FILE
    if not path.exists():
        # The folder of a run holds a folder for each of its checkpoints.
        steps = sorted(p.parent.name for p in folder.glob(f"{FILE}_*/{FILE}"))
        advice = f"Pass one of its folders: {', '.join(steps)}."
        raise CheckpointError(
            folder, FILE, "there", "no such file", advice if steps else ""
        )
    size = check_file(folder, path, FILE)
    if not 0 < size <= MAX_BYTES:
        raise CheckpointError(
            path, "size", f"from 1 to {MAX_BYTES} bytes", f"{size}"
        )
    return path, path.read_bytes()


def _unpack(file, data):
    if data.startswith(b"model_checkpoint_path"):
        raise CheckpointError(
            file, "content", "written by T5X", "a TensorFlow checkpoint"
        )
    room = MAX_ENTRIES

    def counted(items):
        # One byte of msgpack may become an object of a hundred.
        nonlocal room
        room -= len(items) + 1
        if room < 0:
            raise ValueError(f"more than {MAX_ENTRIES} entries")
        return items

    def tree(items):
        found = dict(counted(items))
        if len(found) < len(items):
            raise ValueError("a map that has a key twice")
        return found

    return _unpackb(
        file, "content", data, object_pairs_hook=tree, list_hook=counted
    )


def _unpackb(file, field, data, **options):
    limits = {
        f"max_{kind}_len": MAX_LENGTH for kind in ("str", "bin", "array", "map")
    }
    try:
        return _msgpack().unpackb(data, **{**limits, **options})
    except (ValueError, RecursionError) as error:
        received = str(error) or type(error).__name__
        raise CheckpointError(
            file, field, "msgpack as T5X writes it", received
        ) from None


def _msgpack():
    try:
        import msgpack
    except ImportError:
        raise ImportError(
            'T5X checkpoints need msgpack: pip install "keras-switch[convert]".'
        ) from None
    return msgpack


def _optimizer(file, contents):
    """The whole training state, which T5X still calls so."""
    version = contents.get("version") if isinstance(contents, dict) else None
    if type(version) is not int or version not in _VERSIONS:
        raise CheckpointError(
            file, "version", f"one of {_VERSIONS}, as T5X counts", version
        )
    optimizer = contents.get("optimizer")
    target = optimizer.get("target") if isinstance(optimizer, dict) else None
    if not isinstance(target, dict) or not target:
        raise CheckpointError(
            file, "optimizer/target", "a map of parameters", repr(target)
        )
    return optimizer


def _step(file, optimizer):
    state = optimizer.get("state")
    step = state.get("step") if isinstance(state, dict) else None
    if isinstance(step, _msgpack().ExtType):
        shape, dtype, data = _inline(file, "state/step", step)
        whole = not shape and dtype in ("int32", "int64")
        step = int.from_bytes(data, "little", signed=True) if whole else None
    return step if type(step) is int else None


def _walk(file, node: dict, path: tuple = ()) -> Iterator[tuple[str, Any]]:
    """Names and values of the leaves of a tree of maps."""
    for key, value in node.items():
        if not isinstance(key, str) or not _KEY.fullmatch(key):
            parent = "/".join(path) or "optimizer/target"
            raise CheckpointError(file, parent, "a map of names", repr(key))
        here = (*path, key)
        if not isinstance(value, dict) or _is_leaf(value):
            yield "/".join(here), value
        elif len(here) < MAX_DEPTH:
            yield from _walk(file, value, here)
        else:
            raise CheckpointError(
                file, "optimizer/target", f"at most {MAX_DEPTH} deep", "more"
            )


def _is_leaf(node):
    return _CHUNKED in node or isinstance(node.get("driver"), str)


def _leaf(folder, name, value):
    file = folder / FILE
    if isinstance(value, dict) and _CHUNKED not in value:
        return stored_array(folder, file, name, value)
    if isinstance(value, dict):
        shape, dtype, data = _chunked(file, name, value)
    elif isinstance(value, _msgpack().ExtType):
        shape, dtype, data = _inline(file, name, value)
    else:
        orbax = isinstance(value, str) and value.startswith("PLACEHOLDER:")
        received = "one of Orbax" if orbax else type(value).__name__
        raise CheckpointError(file, name, "an array or a spec", received)
    check_dtype(file, name, dtype)
    if len(data) != array_bytes(shape, dtype):
        raise CheckpointError(
            file,
            name,
            f"of {array_bytes(shape, dtype)} bytes, being {dtype} {shape}",
            f"{len(data)} bytes",
        )
    return Leaf(shape, dtype, lambda: _values(shape, dtype, data))


def _inline(file, name, extension):
    """Shape, dtype and bytes of an array; they are msgpack in msgpack."""
    if extension.code not in (_NDARRAY, _SCALAR):
        raise CheckpointError(
            file, name, "an array", f"extension type {extension.code}"
        )
    parts = _unpackb(
        file, name, extension.data, max_bin_len=MAX_BYTES, max_map_len=0
    )
    kinds = [type(part) for part in parts] if type(parts) is list else None
    if kinds != [list, str, bytes]:
        raise CheckpointError(
            file, name, "a shape, a dtype and bytes", "something else"
        )
    shape, dtype, data = parts
    return check_shape(file, name, shape), dtype, data


def _chunked(file, name, node):
    """The same of an array that flax took apart, being over a gigabyte."""
    shape = check_shape(file, name, _in_order(file, name, node.get("shape")))
    pieces = []
    for piece in _in_order(file, name, node.get("chunks")):
        if not isinstance(piece, _msgpack().ExtType):
            raise CheckpointError(
                file, name, "made of arrays", type(piece).__name__
            )
        pieces.append(_inline(file, name, piece))
    dtypes = {dtype for _, dtype, _ in pieces}
    if len(dtypes) != 1:
        raise CheckpointError(file, name, "of one dtype", sorted(dtypes))
    return shape, dtypes.pop(), b"".join(data for _, _, data in pieces)


def _in_order(file, name, node):
    """The values of `{"0": ..., "1": ...}`."""
    keys = [str(i) for i in range(len(node))] if isinstance(node, dict) else []
    if not keys or set(keys) != set(node):
        raise CheckpointError(
            file, name, "in chunks counted from 0", "something else"
        )
    return [node[key] for key in keys]


def _values(shape, dtype, data):
    if dtype == "bfloat16":  # the upper half of a float32
        upper = np.frombuffer(data, "<u2").astype("<u4") << 16
        return upper.view("<f4").reshape(shape)
    code = {"float32": "<f4", "float16": "<f2"}[dtype]
    return np.frombuffer(data, code).astype("float32").reshape(shape)
