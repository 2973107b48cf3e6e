"""An array that T5X keeps in zarr, read without trusting its files.

In `checkpoint` stands a tensorstore spec in the array's place. T5X opens that
spec, so that whoever wrote the file chooses what is read: any path, any
driver, any URL. Here it is never opened. It claims a shape and a dtype; where
the array lies follows from its name, and its files are compared with what is
claimed before one of them is read.
"""

import itertools
import math
import os
import pathlib
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keras_switch.convert.checkpoint import FLOATS
from keras_switch.files import CheckpointError, read_json

_MAX_RANK = 8
# By name, the dtypes in `.zarray`.
_CODES = {"float32": "<f4", "float16": "<f2", "bfloat16": "bfloat16"}
_SPEC_KEYS = {"driver", "dtype", "kvstore", "metadata", "path"}
_STORE_KEYS = {"driver", "bucket", "path"}
# Where the writer kept its files: a folder copied from a bucket says "gcs".
_STORES = ("file", "gfile", "gcs")
# What DEFLATE gains at most: a chunk that claims more claims memory.
_MAX_RATIO = 1032


class Leaf(NamedTuple):
    """An array of a checkpoint that has not been read yet."""

    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], np.ndarray]  # gives it in float32


def stored_array(
    folder: pathlib.Path, file: pathlib.Path, name: str, spec: dict[str, Any]
) -> Leaf:
    """An array that lies in a folder of its own; its values are not read yet.

    Args:
        folder: The checkpoint. The array must be in its `target.<name>`, with
            dots for slashes.
        file: The file that the spec stands in, for messages.
        name: Name of the array.
        spec: The tensorstore spec; a claim, never opened.

    Returns:
        The array. It is checked already that `.zarray` says what the spec
        says, and that every chunk is there and of a size that can be.

    Raises:
        CheckpointError: if the spec is not one of T5X for this array, the
            files do not agree with it or are missing, or a link leads out of
            the folder.
    """
    dotted = "target." + name.replace("/", ".")
    shape, dtype = _claims(file, name, spec, dotted)
    array = folder / dotted
    check_file(folder, array / ".zarray", name)
    metadata = read_json(array / ".zarray", max_bytes=1 << 14)
    chunks, compressor = _layout(array, name, metadata, shape, dtype)
    size = array_bytes(chunks, dtype)
    counts = [-(-a // b) for a, b in zip(shape, chunks, strict=True)]
    # Lazily: a claim of a billion chunks ends at the first that is missing.
    for index in itertools.product(*map(range, counts)):
        chunk = array / (".".join(map(str, index)) or "0")
        on_disk = check_file(folder, chunk, name)
        _check_chunk(chunk, name, on_disk, size, compressor)
    return Leaf(shape, dtype, lambda: _load(array, name, shape, dtype))


def _claims(file, name, spec, dotted):
    """Shape and dtype, if the spec is the one that T5X writes for `name`."""
    store, metadata = (
        value if isinstance(value, dict) else {}
        for value in (spec.get("kvstore"), spec.get("metadata"))
    )
    others = set(spec) - _SPEC_KEYS | set(store) - _STORE_KEYS
    path = store.get("path", spec.get("path"))
    for expected, received, right in (
        ("kept by the driver zarr", spec["driver"], ("zarr",)),
        (f"kept in one of {_STORES}", store.get("driver"), _STORES),
        (f"kept in {dotted}", path, (dotted, f"{dotted}/")),
        ("kept with no other options", sorted(others), ([],)),
    ):
        if received not in right:
            raise CheckpointError(file, name, expected, repr(received))
    check_dtype(file, name, spec.get("dtype"))
    return check_shape(file, name, metadata.get("shape")), spec["dtype"]


def _layout(array, name, metadata, shape, dtype):
    """Shape of the chunks and their compressor, by a `.zarray` that agrees."""
    expected = {
        "zarr_format": 2,
        "shape": list(shape),
        "dtype": _CODES[dtype],
        "order": "C",
        "filters": None,
        "dimension_separator": ".",
    }
    found = {"dimension_separator": ".", **metadata}
    for key, value in expected.items():
        if key not in found or found[key] != value:
            raise CheckpointError(
                array / ".zarray",
                name,
                f"of {key} {value!r}, as the checkpoint says",
                repr(found.get(key)),
            )
    chunks = check_shape(array / ".zarray", name, found.get("chunks"))
    # zarr lets chunks be larger than the array; T5X never writes them, and
    # reading one takes the memory that it claims.
    if len(chunks) != len(shape) or any(map(int.__gt__, chunks, shape)):
        raise CheckpointError(
            array / ".zarray", name, f"in chunks within {shape}", chunks
        )
    compressor, kind = found.get("compressor"), None
    if compressor is not None:
        kind = compressor.get("id") if isinstance(compressor, dict) else None
        if kind not in ("gzip", "blosc"):
            raise CheckpointError(
                array / ".zarray",
                name,
                "plain, or compressed by gzip or blosc",
                repr(compressor),
            )
    return chunks, kind


def _check_chunk(chunk, name, on_disk, size, compressor):
    """Refuses a chunk that cannot be one of `size` bytes, before reading it."""
    unpacked, right = on_disk, on_disk == size
    if compressor is not None:
        unpacked = _unpacked_size(chunk, on_disk, compressor)
        right = unpacked == size % (1 << 32) and size <= on_disk * _MAX_RATIO
    if not right:
        raise CheckpointError(
            chunk,
            name,
            f"whole, a chunk of {size} bytes",
            f"{on_disk} bytes on disk that say they are {unpacked}",
        )


def _unpacked_size(chunk, on_disk, compressor):
    """What a compressed chunk says of itself, which may be wrong.

    gzip says it at its end, after the checksum: without them, what is left of
    a chunk would pass for a whole one. blosc says it in its header, and a
    reader takes the memory.
    """
    with open(chunk, "rb") as file:
        file.seek(4 if compressor == "blosc" else max(0, on_disk - 4))
        return int.from_bytes(file.read(4), "little")


def _load(array, name, shape, dtype):
    try:
        import tensorstore
    except ImportError:
        raise ImportError(
            "T5X checkpoints need tensorstore: "
            'pip install "keras-switch[convert]".'
        ) from None
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": f"{array.resolve()}/"},
        "metadata": {"shape": list(shape), "dtype": _CODES[dtype]},
        # A chunk that is missing would be read as zeros.
        "fill_missing_data_reads": False,
    }
    try:
        store = tensorstore.open(spec, open=True, read=True).result()
        return store.read().result().astype("float32", copy=False)
    except (ValueError, OSError, RuntimeError) as error:
        # Behind the reason stands the spec, which is ours.
        reason = str(error).partition(" [tensorstore_spec")[0]
        raise CheckpointError(array, name, "readable", reason) from None


# === What arrays of both kinds have in common ===


def check_file(folder: pathlib.Path, path: pathlib.Path, name: str) -> int:
    """Refuses what is no file, or is led to by a link out of the folder.

    Args:
        folder: Folder of the checkpoint.
        path: File in it.
        name: What is to be in it, for messages.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: if it is missing, no file, or not in the folder.
    """
    root, real = os.path.realpath(folder), os.path.realpath(path)
    if not real.startswith(os.path.join(root, "")):
        raise CheckpointError(path, name, "in the folder", f"a link to {real}")
    try:
        status = os.stat(real)
    except OSError as error:
        raise CheckpointError(path, name, "there", error.strerror) from None
    # To open a pipe would wait for its writer for ever.
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(path, name, "in a file", "something else")
    return status.st_size


def check_shape(file: pathlib.Path, name: str, value: Any) -> tuple[int, ...]:
    """A shape that stands in a file, as a tuple.

    Raises:
        CheckpointError: if it is not a list of at most 8 positive ints.
    """
    if (
        not isinstance(value, list)
        or len(value) > _MAX_RANK
        or not all(type(size) is int and size > 0 for size in value)
    ):
        raise CheckpointError(
            file, name, f"of at most {_MAX_RANK} positive sizes", repr(value)
        )
    return tuple(value)


def check_dtype(file: pathlib.Path, name: str, dtype: Any) -> None:
    """Refuses what is not the name of a float of at most 32 bits.

    Raises:
        CheckpointError: naming the array.
    """
    if not isinstance(dtype, str) or dtype not in FLOATS:
        raise CheckpointError(
            file, name, f"one of {', '.join(FLOATS)}", f"dtype {dtype!r}"
        )


def array_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of an array of floats."""
    return math.prod(shape) * (4 if dtype == "float32" else 2)
