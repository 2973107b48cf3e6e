"""T5X folders that are not what they must be."""

import functools
import json
import os

import msgpack
import numpy as np

from tests.faults.hostile_files import SECRET, Fault

_FILE = "checkpoint"
_ARRAY = "target.token_embedder.embedding"


def faults() -> list[Fault]:
    """Faults of T5X folders."""
    return [
        fault._replace(load="t5x", preset="t5x")
        for part in (_of_specs(), _of_msgpack(), _of_arrays(), _of_zarr())
        for fault in part
    ]


def _unpacked(folder):
    data = (folder / _FILE).read_bytes()
    return msgpack.unpackb(data, strict_map_key=False)


def _edit(function):
    """Edits what is in the file `checkpoint`."""

    def spoil(folder):
        content = _unpacked(folder)
        edited = function(content)
        content = content if edited is None else edited
        (folder / _FILE).write_bytes(msgpack.packb(content))

    return spoil


def _spec(**fields):
    def function(content):
        node = content["optimizer"]["target"]["token_embedder"]
        node["embedding"] |= fields

    return _edit(function)


def _store(**fields):
    def function(content):
        node = content["optimizer"]["target"]["token_embedder"]["embedding"]
        node["kvstore"] |= fields

    return _edit(function)


def _of_specs():
    for name, spoil in (
        (
            "an absolute path",
            lambda folder: _store(path=str(folder.parent / SECRET))(folder),
        ),
        ("a path to /etc", _store(path="/etc/passwd")),
        ("../", _store(path=f"../{SECRET}")),
        ("another array", _store(path="target.decoder.decoder_norm.scale")),
        ("http", _store(driver="http", base_url="http://127.0.0.1:9/")),
        ("s3", _store(driver="s3", bucket="a")),
        ("a driver for JSON", _spec(driver="json")),
        ("a driver for N5", _spec(driver="n5")),
        ("an option more", _spec(recheck_cached_data=False)),
        ("a transform", _spec(transform={"input_rank": 1})),
        ("a terabyte", _spec(metadata={"shape": [2**40, 1]})),
        ("a negative size", _spec(metadata={"shape": [-1, 16]})),
        ("no shape", _spec(metadata={})),
        ("objects", _spec(dtype="json")),
        ("a dtype that is a list", _spec(dtype=["float32"])),
        ("float64", _spec(dtype="float64")),
    ):
        yield Fault(f"T5X: a spec of {name}", spoil, "embedding")


def _of_msgpack():
    def raw(data):
        return lambda folder: (folder / _FILE).write_bytes(data)

    for name, spoil in (
        ("nothing", raw(b"")),
        ("zeros", raw(bytes(1000))),
        ("a list a million deep", raw(b"\x91" * 1_000_000)),
        ("a map of 4 billion", raw(b"\xdf\xff\xff\xff\xff")),
        ("4 GiB of bytes", raw(b"\xc6\xff\xff\xff\xff")),
        ("a list of 4 billion", raw(b"\xdd\xff\xff\xff\xff")),
        (
            "a million empty lists",
            raw(b"\xdd\x00\x0f\x42\x40" + b"\x90" * 10**6),
        ),
        ("a key twice", raw(b"\x82\xa1a\x01\xa1a\x02")),
        ("a number", raw(b"\x07")),
        ("a pickle", raw(b"\x80\x04cos\nsystem\n.")),
        ("a TensorFlow checkpoint", raw(b'model_checkpoint_path: "a"')),
        ("half of it", _half),
        ("something behind its end", _more),
        ("no version", _edit(lambda c: c.pop("version") and None)),
        ("version 1", _edit(lambda c: c.update(version=1))),
        ("version true", _edit(lambda c: c.update(version=True))),
        ("no optimizer", _edit(lambda c: c.update(optimizer=None))),
        (
            "no parameters",
            _edit(lambda c: c["optimizer"].update(target={})),
        ),
        (
            "a key that leads out",
            _edit(lambda c: c["optimizer"]["target"].update({"../a": {}})),
        ),
        (
            "a key that is a number",
            _edit(lambda c: c["optimizer"]["target"].update({7: {}})),
        ),
        (
            "a parameter that is text",
            _edit(lambda c: c["optimizer"]["target"].update(a="b")),
        ),
        (
            "a placeholder of Orbax",
            _edit(lambda c: c["optimizer"]["target"].update(a="PLACEHOLDER:a")),
        ),
    ):
        yield Fault(f"T5X: {name}", spoil, "")
    yield Fault("T5X: no file", lambda folder: os.unlink(folder / _FILE), "")


def _half(folder):
    data = (folder / _FILE).read_bytes()
    (folder / _FILE).write_bytes(data[: len(data) // 2])


def _more(folder):
    with open(folder / _FILE, "ab") as file:
        file.write(b"\xc0")


def _inline(shape, dtype, data, code=1):
    def function(content):
        parts = msgpack.packb((shape, dtype, data), use_bin_type=True)
        node = content["optimizer"]["target"]["decoder"]["decoder_norm"]
        node["scale"] = msgpack.ExtType(code, parts)

    return _edit(function)


def _of_arrays():
    nan = np.full(16, np.nan, "f4").tobytes()
    ones = np.ones(16, "f4").tobytes()
    for name, spoil in (
        ("of NaN", _inline([16], "float32", nan)),
        ("of infinity", _inline([16], "float32", b"\0\0\x80\x7f" * 16)),
        ("of objects", _inline([16], "object", ones)),
        ("of int32", _inline([16], "int32", ones)),
        ("of fewer bytes", _inline([16], "float32", ones[:-1])),
        ("of a terabyte", _inline([2**38], "float32", ones)),
        ("of another shape", _inline([4, 4], "float32", ones)),
        ("of a negative size", _inline([-16], "float32", ones)),
        ("of true sizes", _inline([True], "float32", ones[:4])),
        ("of 100 dimensions", _inline([1] * 100, "float32", ones[:4])),
        ("of another kind", _inline([16], "float32", ones, code=42)),
        ("of complex numbers", _inline([16], "complex64", ones * 2)),
    ):
        yield Fault(f"T5X: an array {name}", spoil, "decoder_norm")

    def less(content):
        del content["optimizer"]["target"]["decoder"]["decoder_norm"]

    def more(content):
        content["optimizer"]["target"]["surprise"] = content["optimizer"][
            "target"
        ]["decoder"]["decoder_norm"]

    yield Fault("T5X: an array less", _edit(less), "decoder_norm")
    yield Fault("T5X: an array more", _edit(more), "surprise")

    def deep(content):
        node = content["optimizer"]["target"]
        for _ in range(40):
            node["a"] = {}
            node = node["a"]

    yield Fault("T5X: arrays 40 deep", _edit(deep), "deep")


def _metadata(**fields):
    def spoil(folder):
        path = folder / _ARRAY / ".zarray"
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps(content))

    return spoil


def _chunk(function):
    def spoil(folder):
        (chunk,) = (
            p for p in (folder / _ARRAY).iterdir() if p.name != ".zarray"
        )
        function(chunk)

    return spoil


def _link(target, chunk):
    chunk.unlink()
    chunk.symlink_to(target)


def _pipe(chunk):
    chunk.unlink()
    os.mkfifo(chunk)


def _of_zarr():
    out = f"../../{SECRET}"
    for name, spoil in (
        ("a chunk that is missing", _chunk(os.unlink)),
        ("a chunk of no bytes", _chunk(lambda c: c.write_bytes(b""))),
        (
            "half a chunk",
            _chunk(lambda c: c.write_bytes(c.read_bytes()[:-40])),
        ),
        ("a chunk of zeros", _chunk(lambda c: c.write_bytes(bytes(900)))),
        ("a chunk that is a link out", _chunk(functools.partial(_link, out))),
        (
            "a chunk that is /dev/zero",
            _chunk(functools.partial(_link, "/dev/zero")),
        ),
        ("a chunk that is a pipe", _chunk(_pipe)),
        ("a flipped bit", _chunk(_flipped)),
        ("a terabyte in .zarray", _metadata(shape=[2**40, 16])),
        ("chunks larger than the array", _metadata(chunks=[2**20, 2**20])),
        ("chunks of no size", _metadata(chunks=[0, 16])),
        ("a filter", _metadata(filters=[{"id": "pickle"}])),
        ("objects in .zarray", _metadata(dtype="|O")),
        ("Fortran's order", _metadata(order="F")),
        ("a compressor that is unknown", _metadata(compressor={"id": "x"})),
        ("numbers back to front", _metadata(dtype=">f4")),
        ("zarr 3", _metadata(zarr_format=3)),
        ("no .zarray", lambda f: os.unlink(f / _ARRAY / ".zarray")),
        (
            "a .zarray that is a link out",
            lambda f: _link(out, f / _ARRAY / ".zarray"),
        ),
        (
            "an array that is a link out",
            lambda f: (
                (f / _ARRAY).rename(f.parent / "moved"),
                (f / _ARRAY).symlink_to("../moved", True),
            ),
        ),
    ):
        yield Fault(f"T5X: {name}", spoil, "embedding")


def _flipped(chunk):
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 8
    chunk.write_bytes(data)
