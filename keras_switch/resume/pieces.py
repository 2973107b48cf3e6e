"""Arrays in pieces, in files of which each process writes one.

A file is in the format of safetensors, whose package is not needed to train,
and which would not let go of the interpreter while it writes. An array's piece
is a tensor `name@0,16`: the place in the array at which it begins. What the
whole array is stands in the metadata.
"""

import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_switch.files import CheckpointError, parse_json

Start = tuple[int, ...]
# NumPy's names and those of safetensors; others are written as bytes.
_DTYPES = {
    "|b1": "BOOL",
    "|i1": "I8",
    "|u1": "U8",
    "<i2": "I16",
    "<u2": "U16",
    "<f2": "F16",
    "<i4": "I32",
    "<u4": "U32",
    "<f4": "F32",
    "<i8": "I64",
    "<u8": "U64",
    "<f8": "F64",
}
# Complex and longer floats, and text, which callbacks may remember.
_OTHER_DTYPE = re.compile(r"<[cfU][1-9]\d{0,5}")
_START = re.compile(r"(\d{1,18}(,\d{1,18})*)?")
_MAX_HEADER = 1 << 28
_MAX_BYTES, _MAX_RANK = 1 << 62, 32


class Pieces:
    """An array, or what a process has of it, in pieces of one shape.

    Args:
        shape: Of the whole array.
        pieces: At least one, by the place at which it begins: a multiple of
            its shape.
    """

    def __init__(
        self, shape: Iterable[int], pieces: dict[Start, np.ndarray]
    ) -> None:
        self.shape, self.pieces = tuple(shape), pieces
        piece = next(iter(pieces.values()))
        self.dtype, self.piece_shape = piece.dtype, piece.shape

    @classmethod
    def whole(cls, array: np.ndarray) -> "Pieces":
        """An array that is one piece."""
        return cls(array.shape, {(0,) * array.ndim: array})

    def view(self, dtype: Any) -> "Pieces":
        """The same bits as another dtype of the same size."""
        pieces = {start: p.view(dtype) for start, p in self.pieces.items()}
        return Pieces(self.shape, pieces)

    def is_whole(self) -> bool:
        """Whether no piece is missing, and none lies across another."""
        for start, piece in self.pieces.items():
            places = zip(start, self.shape, self.piece_shape, strict=True)
            if piece.shape != self.piece_shape or not all(
                first < max(whole, 1) and first % max(size, 1) == 0
                for first, whole, size in places
            ):
                return False
        count = 1
        for whole, size in zip(self.shape, self.piece_shape, strict=True):
            if whole % size if size else whole:
                return False
            count *= whole // size if size else 1
        return count == len(self.pieces)

    def __getitem__(self, index: tuple[slice, ...]) -> np.ndarray:
        """A copy of a part of the array; no other part is read."""
        ranges = [
            range(*part.indices(size))
            for part, size in zip(index, self.shape, strict=True)
        ]
        found = np.empty([len(r) for r in ranges], self.dtype)
        if not found.size:
            return found
        cells = [
            range(r.start // size * size, r.stop, size)
            for r, size in zip(ranges, self.piece_shape, strict=True)
        ]
        for start in itertools.product(*cells):
            # What of the piece is wanted, seen from the result and from it.
            ours, its = [], []
            for first, wanted, size in zip(
                start, ranges, self.piece_shape, strict=True
            ):
                low = max(first, wanted.start)
                high = min(first + size, wanted.stop)
                ours.append(slice(low - wanted.start, high - wanted.start))
                its.append(slice(low - first, high - first))
            found[tuple(ours)] = self.pieces[start][tuple(its)]
        return found

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array = self[(slice(None),) * len(self.shape)]
        return array if dtype is None else array.astype(dtype, copy=False)


def write_pieces(path: str | os.PathLike, arrays: dict[str, Pieces]) -> str:
    """Writes what a process has of arrays.

    Args:
        path: The file.
        arrays: By name. A dtype that NumPy lacks is written as unsigned
            integers of its size.

    Returns:
        The file's SHA-256 digest, in hexadecimal.
    """
    tensors, whole, blocks, end = {}, {}, [], 0
    for name, array in arrays.items():
        for start, piece in array.pieces.items():
            piece = _plain(piece)
            block = np.ascontiguousarray(piece).reshape(-1).view("u1")
            key = piece.dtype.str
            kind, last = _kind(piece.dtype)
            tensors[f"{name}@{','.join(map(str, start))}"] = {
                "dtype": kind,
                "shape": [*piece.shape, *last],
                "data_offsets": [end, end := end + block.size],
            }
            whole[name] = {"dtype": key, "shape": array.shape}
            blocks.append(block)
    metadata = {"arrays": json.dumps(whole)}
    header = json.dumps({"__metadata__": metadata, **tensors}).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for block in (len(header).to_bytes(8, "little") + header, *blocks):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def read_pieces(paths: Sequence[pathlib.Path]) -> dict[str, Pieces]:
    """Opens the files of all processes.

    Args:
        paths: Whole files that do not change.

    Returns:
        The arrays by name; they are read when they are indexed.

    Raises:
        CheckpointError: if a file is not what `write_pieces` writes, or the
            pieces of an array do not make a whole.
    """
    shapes, pieces = {}, {}
    for path in paths:
        for name, whole, start, piece in _pieces_of(path):
            first = shapes.setdefault(name, (whole, piece.dtype))
            if first != (whole, piece.dtype):
                raise CheckpointError(
                    path, name, f"{first}, as before", (whole, piece.dtype)
                )
            if start in pieces.setdefault(name, {}):
                raise CheckpointError(
                    path, name, "there once", f"{start} again"
                )
            pieces[name][start] = piece
    arrays = {name: Pieces(shapes[name][0], p) for name, p in pieces.items()}
    for name, array in arrays.items():
        if not array.is_whole():
            raise CheckpointError(
                paths[0].parent,
                name,
                f"covered once, a whole of shape {array.shape}",
                f"pieces {[(s, p.shape) for s, p in array.pieces.items()][:4]}",
            )
    return arrays


def _plain(array):
    """Little-endian, and of a dtype of NumPy's own."""
    if array.dtype.isbuiltin == 2:
        return np.asarray(array, order="C").view(f"u{array.dtype.itemsize}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _kind(dtype):
    """How safetensors calls a dtype, and the axis of its bytes if not."""
    name = _DTYPES.get(dtype.str)
    return (name, ()) if name else ("U8", (dtype.itemsize,))


def _pieces_of(path) -> Iterator[tuple[str, Start, Start, np.ndarray]]:
    """Name, whole shape, start and piece of each tensor of a file."""
    header, data = _open(path)
    metadata = header.pop("__metadata__", None)
    _check_keys(path, "__metadata__", metadata, {"arrays"})
    text = metadata["arrays"]
    if not isinstance(text, str):
        raise CheckpointError(path, "arrays", "a string", type(text).__name__)
    arrays = parse_json(path, text.encode(errors="replace"), _MAX_HEADER)
    whole = {name: _whole(path, name, value) for name, value in arrays.items()}
    end = 0
    for key, entry in header.items():
        name, _, text = key.rpartition("@")
        if name not in whole or not _START.fullmatch(text):
            raise CheckpointError(
                path, "tensor", "a piece of an array", repr(key)[:80]
            )
        start = tuple(map(int, text.split(","))) if text else ()
        dtype, shape = whole[name]
        found = _shape(path, key, entry, dtype)
        if not len(start) == len(found) == len(shape):
            raise CheckpointError(
                path, key, f"of rank {len(shape)}", (start, found)
            )
        offsets = [end, end := end + math.prod(found) * dtype.itemsize]
        if entry["data_offsets"] != offsets or end > data.size:
            raise CheckpointError(
                path, f"{key} data_offsets", offsets, entry["data_offsets"]
            )
        piece = data[slice(*offsets)].view(dtype).reshape(found)
        yield name, shape, start, piece
    if end != data.size:
        raise CheckpointError(path, "size", f"{end} bytes of data", data.size)


def _open(path):
    """The header of a file, and its data as bytes that are not read yet."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                path, "header", "within the file", f"{length} bytes long"
            )
        header = parse_json(path, file.read(length), _MAX_HEADER)
    data = np.memmap(path, "u1", "r").view(np.ndarray)
    return header, data[8 + length :]


def _whole(path, name, value):
    """Dtype and shape of an array."""
    _check_keys(path, name, value, {"dtype", "shape"})
    text = value["dtype"]
    if not isinstance(text, str) or not (
        text in _DTYPES or _OTHER_DTYPE.fullmatch(text)
    ):
        raise CheckpointError(path, f"{name} dtype", "known", repr(text)[:80])
    try:
        dtype = np.dtype(text)
    except TypeError:  # <f3
        raise CheckpointError(path, f"{name} dtype", "known", text) from None
    return dtype, _sizes(path, name, value["shape"], dtype.itemsize)


def _shape(path, key, entry, dtype):
    """Of a piece, without the axis of its bytes."""
    _check_keys(path, key, entry, {"dtype", "shape", "data_offsets"})
    kind, last = _kind(dtype)
    if entry["dtype"] != kind:
        raise CheckpointError(path, f"{key} dtype", kind, entry["dtype"])
    shape = _sizes(path, key, entry["shape"], dtype.itemsize)
    if not last:
        return shape
    if shape[-1:] != last:
        raise CheckpointError(path, f"{key} shape", f"[..., {last[0]}]", shape)
    return shape[:-1]


def _sizes(path, name, shape, itemsize):
    """A shape that NumPy can have."""
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_RANK
        or not all(type(n) is int and 0 <= n < _MAX_BYTES for n in shape)
        or math.prod(max(n, 1) for n in shape) * itemsize >= _MAX_BYTES
    ):
        raise CheckpointError(path, f"{name} shape", "a shape", str(shape)[:80])
    return tuple(shape)


def _check_keys(path, field, value, keys):
    if not isinstance(value, dict) or set(value) != keys:
        raise CheckpointError(
            path,
            field,
            f"an object of {', '.join(sorted(keys))}",
            repr(value)[:80],
        )
