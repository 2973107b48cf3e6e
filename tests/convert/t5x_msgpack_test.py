"""The file `checkpoint`: what flax writes is read, anything else refused."""

import os
import struct
import time
import tracemalloc

import msgpack
import numpy as np
import pytest

from keras_switch.convert import t5x_msgpack
from keras_switch.convert.t5x_msgpack import read_leaves
from keras_switch.files import CheckpointError
from tests.convert.t5x_writer import chunked, pack, packed

NAME = "encoder/encoder_norm/scale"
MEGABYTE = 1 << 20


def extension(shape, dtype, data, code=1):
    return msgpack.ExtType(code, msgpack.packb((shape, dtype, data)))


def read(folder, value):
    """The one parameter of a checkpoint where `value` stands in its place."""
    pack(folder, {NAME: value})
    leaves, _ = read_leaves(folder)
    assert list(leaves) == [NAME]
    return leaves[NAME]


def refused(folder, *words, data=None):
    """One error that names the file, at once, and without much memory."""
    path = folder / "checkpoint"
    if data is not None:
        path.write_bytes(data)
    start = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        read_leaves(folder)
    assert time.process_time() - start < 5
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        read_leaves(folder)
    assert tracemalloc.get_traced_memory()[1] < 64 * MEGABYTE
    tracemalloc.stop()
    for word in ("checkpoint", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(6,), (2, 3), ()])
def test_arrays(tmp_path, shape, dtype):
    array = np.random.default_rng(0).normal(size=shape).astype(dtype)
    leaf = read(tmp_path, packed(array))
    assert (leaf.shape, leaf.dtype) == (shape, dtype)
    assert leaf.load().dtype == "float32"
    np.testing.assert_array_equal(leaf.load(), array.astype("float32"))


def test_bfloat16(tmp_path):
    values = [1.0, -2.5, 0.0, 3.0e38, np.inf, np.nan]
    bits = np.array(values, "<f4").view("<u4") >> 16
    leaf = read(
        tmp_path, extension((2, 3), "bfloat16", bits.astype("<u2").tobytes())
    )
    wanted = (bits << 16).view("<f4").reshape(2, 3)
    assert leaf.dtype == "bfloat16"
    np.testing.assert_array_equal(leaf.load(), wanted)
    np.testing.assert_allclose(leaf.load()[0], values[:3])


@pytest.mark.parametrize("size", [1, 5, 24])
def test_chunked_arrays(tmp_path, size):
    array = np.arange(24, dtype="float32").reshape(2, 3, 4)
    leaf = read(tmp_path, chunked(array, size))
    assert leaf.shape == (2, 3, 4)
    np.testing.assert_array_equal(leaf.load(), array)


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (packed(np.int32(1000000)), 1000000),
        (packed(np.array(-1)), -1),
        (5, 5),
        (None, None),
        (True, None),
        (packed(np.float32(3)), None),
        (packed(np.array([3])), None),
        ({"driver": "zarr"}, None),
    ],
)
def test_step(tmp_path, step, wanted):
    target = {"a": packed(np.zeros(1, "float32"))}
    for state in ({"step": step}, {"step": step, "param_states": {}}):
        contents = {"target": target, "state": state}
        contents = {"version": 3, "optimizer": contents}
        (tmp_path / "checkpoint").write_bytes(msgpack.packb(contents))
        assert read_leaves(tmp_path)[1] == wanted


def test_optimizer_is_not_read(tmp_path):
    """Not even where it is nonsense."""
    target = {"a": packed(np.zeros(1, "float32"))}
    state = {"param_states": {"a": {"v": {"driver": "http"}}}}
    contents = {"version": 2, "optimizer": {"target": target, "state": state}}
    (tmp_path / "checkpoint").write_bytes(msgpack.packb(contents))
    assert list(read_leaves(str(tmp_path))[0]) == ["a"]


VALUES = np.zeros(6, "float32").tobytes()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (extension((6,), "object", VALUES), ("dtype 'object'",)),
        (extension((6,), "O", VALUES), ("dtype 'O'",)),
        (extension((6,), "int32", VALUES), ("dtype 'int32'",)),
        (extension((6,), "uint16", VALUES[:12]), ("dtype 'uint16'",)),
        (extension((6,), "float64", VALUES * 2), ("dtype 'float64'",)),
        (extension((6,), "float32,float32", VALUES), ("dtype",)),
        (extension((7,), "float32", VALUES), ("28 bytes", "24 bytes")),
        (extension((1 << 40,), "float32", VALUES), ("24 bytes",)),
        (extension((1 << 63,) * 8, "float32", VALUES), ("24 bytes",)),
        (extension((0,), "float32", b""), ("positive sizes",)),
        (extension((-6,), "float32", VALUES), ("positive sizes",)),
        (extension((True, 6), "float32", VALUES), ("positive sizes",)),
        (extension((1,) * 9 + (6,), "float32", VALUES), ("positive sizes",)),
        (extension(6, "float32", VALUES), ("a shape, a dtype and bytes",)),
        (extension((6,), b"float32", VALUES), ("a shape, a dtype",)),
        (extension((6,), "float32", [0.0] * 6), ("a shape, a dtype",)),
        (extension((6,), "float32", VALUES, code=2), ("extension type 2",)),
        (extension((6,), "float32", VALUES, code=77), ("type 77",)),
        (msgpack.ExtType(1, b"\xdd\xff\xff\xff\xff"), ("max_array_len",)),
        (msgpack.ExtType(1, b"\xc6\xff\xff\xff\xff"), ("incomplete",)),
        (msgpack.ExtType(1, b""), ("msgpack",)),
        (msgpack.ExtType(1, b"\x91" * 10**6), ("msgpack",)),
        ("PLACEHOLDER://encoder", ("Orbax",)),
        ("text", ("str",)),
        (None, ("NoneType",)),
        (3.0, ("float",)),
        ([1.0, 2.0], ("list",)),
        (msgpack.Timestamp(1), ("Timestamp",)),
        (chunked(np.zeros(6, "float32"), 4) | {"shape": {}}, ("chunks",)),
        (chunked(np.zeros(6, "float32"), 4) | {"shape": 6}, ("chunks",)),
        (chunked(np.zeros(6, "float32"), 4) | {"shape": {"0": 7}}, ("28",)),
        (
            chunked(np.zeros(6, "float32"), 4)
            | {"chunks": {"0": packed(np.zeros(4, "float32")), "2": 0}},
            ("chunks counted from 0",),
        ),
        (
            chunked(np.zeros(6, "float32"), 4) | {"chunks": {"0": 1.0}},
            ("made of arrays",),
        ),
        (
            chunked(np.zeros(6, "float32"), 4)
            | {
                "chunks": {
                    "0": packed(np.zeros(5, "float32")),
                    "1": packed(np.zeros(2, "float16")),
                }
            },
            ("of one dtype",),
        ),
    ],
)
def test_leaves_that_are_none(tmp_path, value, words):
    pack(tmp_path, {NAME: value})
    refused(tmp_path, NAME, *words)


def maps(depth):
    return b"\x81\xa1a" * depth


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ("size", "0")),
        (b"\xc1", ("msgpack",)),
        (b"not a checkpoint at all", ("msgpack",)),
        (b'model_checkpoint_path: "model.ckpt-1"\n', ("TensorFlow",)),
        (b"\x91" * 10**6, ("msgpack", "StackError")),
        (maps(10**6) + b"\xc0", ("msgpack", "StackError")),
        (b"\xdd\xff\xff\xff\xff", ("max_array_len",)),
        (b"\xdf\xff\xff\xff\xff", ("max_map_len",)),
        (b"\xdb\xff\xff\xff\xff", ("incomplete",)),
        (b"\xc6\xff\xff\xff\xff", ("incomplete",)),
        (b"\xc9\xff\xff\xff\xff\x01", ("max_ext_len",)),
        (b"\x82\xa1a\x01\xa1a\x02", ("a key twice",)),
        (b"\x81\x01\x02", ("msgpack", "int")),
        (b"\x81\xa1\xff\x02", ("msgpack", "utf-8")),
        (msgpack.packb({"version": 3}) + b"\xc0", ("extra",)),
        (msgpack.packb([3]), ("version", "None")),
        (msgpack.packb({"version": 1, "optimizer": {}}), ("version", "1")),
        (msgpack.packb({"version": True}), ("version", "True")),
        (msgpack.packb({"version": 3.0}), ("version", "3.0")),
        (msgpack.packb({"version": 3}), ("optimizer/target", "None")),
        (msgpack.packb({"version": 3, "optimizer": []}), ("target", "None")),
        (
            msgpack.packb({"version": 3, "optimizer": {"target": {}}}),
            ("optimizer/target", "{}"),
        ),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path, data, words):
    refused(tmp_path, *words, data=data)


def test_files_that_unfold(tmp_path):
    """A byte is an empty map, which takes 64 bytes of memory."""
    block = b"\xdc\x03\xff" + b"\x80" * 1023
    refused(tmp_path, "entries", data=b"\xdc\x03\xff" + block * 1023)


@pytest.mark.parametrize("cut", [1, 2, 40, 400])
def test_truncated(tmp_path, cut):
    pack(tmp_path, {NAME: packed(np.zeros(200, "float32"))})
    data = (tmp_path / "checkpoint").read_bytes()
    refused(tmp_path, "incomplete", data=data[:-cut])


@pytest.mark.parametrize(
    "key",
    ["..", "a/b", "../../etc", "/etc", "a.b", "", "a\0", "a" * 65, "é"],
)
def test_names_that_are_paths(tmp_path, key):
    leaf = packed(np.zeros(1, "float32"))
    contents = {"target": {"encoder": {key: leaf}}, "state": {}}
    contents = {"version": 3, "optimizer": contents}
    data = msgpack.packb(contents)
    refused(tmp_path, "encoder", "names", data=data)


def test_depth(tmp_path):
    name = "/".join("a" * 32)
    pack(tmp_path, {name: packed(np.ones(1, "float32"))})
    assert list(read_leaves(tmp_path)[0]) == [name]
    pack(tmp_path, {f"{name}/a": packed(np.ones(1, "float32"))})
    refused(tmp_path, "32 deep")


def test_size(tmp_path, monkeypatch):
    pack(tmp_path, {NAME: packed(np.ones(100, "float32"))})
    size = (tmp_path / "checkpoint").stat().st_size
    monkeypatch.setattr(t5x_msgpack, "MAX_BYTES", size)
    read_leaves(tmp_path)
    monkeypatch.setattr(t5x_msgpack, "MAX_BYTES", size - 1)
    refused(tmp_path, "size", f"{size}")


def test_a_giant_is_not_read(tmp_path):
    with open(tmp_path / "checkpoint", "wb") as file:
        file.write(struct.pack("B", 0x80))
        file.truncate(t5x_msgpack.MAX_BYTES + 1)  # sparse: takes no disk
    tracemalloc.start()
    with pytest.raises(CheckpointError, match="size"):
        read_leaves(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < MEGABYTE
    tracemalloc.stop()


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_leaves(tmp_path / "missing")
    for step in (100, 1000):
        (tmp_path / f"checkpoint_{step}").mkdir()
        pack(tmp_path / f"checkpoint_{step}", {NAME: packed(np.ones(1))})
    with pytest.raises(CheckpointError, match="checkpoint_100, checkpoint_10"):
        read_leaves(tmp_path)


def test_files_of_other_kinds(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    pack(outside, {NAME: packed(np.ones(1, "float32"))})
    inside.mkdir()
    path = inside / "checkpoint"
    path.symlink_to(outside / "checkpoint")
    refused(inside, "in the folder", str(outside))
    path.unlink()
    os.mkfifo(path)
    refused(inside, "in a file")
    path.unlink()
    path.mkdir()
    refused(inside, "in a file")


def test_without_msgpack(tmp_path, monkeypatch):
    pack(tmp_path, {NAME: packed(np.ones(1, "float32"))})
    monkeypatch.setitem(__import__("sys").modules, "msgpack", None)
    with pytest.raises(ImportError, match="pip install .*convert"):
        read_leaves(tmp_path)
