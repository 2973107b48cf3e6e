"""Arrays in zarr: hostile and broken folders, and that none is read."""

import gzip
import json
import os
import shutil
import sys
import time

import numpy as np
import pytest
import tensorstore

from keras_switch.convert.t5x import T5XCheckpoint
from keras_switch.files import CheckpointError
from tests.convert.t5x_writer import pack, packed, stored

NAME = "encoder/layers_0/mlp/wi/kernel"
DOTTED = "target.encoder.layers_0.mlp.wi.kernel"
ARRAY = np.random.default_rng(0).normal(size=(6, 40)).astype("float32")
OTHER = "encoder/encoder_norm/scale"


class Folder:
    """A checkpoint of two arrays, in zarr in 2 chunks and in the file."""

    def __init__(self, path, compressor="gzip", rows=3):
        self.path, self.array = path, path / DOTTED
        self.spec = stored(path, NAME, ARRAY, compressor, chunks=[rows, 40])
        self.pack()

    def pack(self, spec=None):
        target = {NAME: self.spec if spec is None else spec}
        pack(self.path, {**target, OTHER: packed(np.ones(4, "float32"))})

    def zarray(self, **changes):
        path = self.array / ".zarray"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "checkpoint_7")


@pytest.fixture
def outside(tmp_path):
    """An array that lies beside the checkpoint, not in it."""
    stored(tmp_path / "elsewhere", NAME, ARRAY, chunks=[3, 40])
    return tmp_path / "elsewhere" / DOTTED


_OPENED = None


def _audit(event, arguments):
    if _OPENED is not None and event in ("open", "socket.connect"):
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_audit)  # stays for good, and does nothing by itself


def refused(folder, *words, read=False):
    """One error that names file and array, at once; nothing outside is read.

    What Python opens is seen by an audit hook. tensorstore must not open
    anything, but where only reading can tell, with `read`.
    """
    global _OPENED
    with pytest.MonkeyPatch.context() as patch:
        if read:
            checkpoint = T5XCheckpoint(folder.path)
        else:
            patch.setattr(tensorstore, "open", None)
        _OPENED = []
        start = time.process_time()
        with pytest.raises(CheckpointError) as caught:
            checkpoint.read(NAME) if read else T5XCheckpoint(folder.path)
        assert time.process_time() - start < 5
        opened, _OPENED = _OPENED, None
    for path in opened:
        assert path.startswith(str(folder.path)), path
    for word in (str(folder.path), *words):
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("compressor", ["gzip", "blosc", None])
def test_reads(tmp_path, compressor):
    checkpoint = T5XCheckpoint(Folder(tmp_path / "a b", compressor).path)
    assert checkpoint.shapes == {NAME: (6, 40), OTHER: (4,)}
    assert checkpoint.dtypes[NAME] == "float32"
    np.testing.assert_array_equal(checkpoint.read(NAME), ARRAY)


def test_reads_from_a_relative_folder(folder, monkeypatch):
    monkeypatch.chdir(folder.path)
    np.testing.assert_array_equal(T5XCheckpoint(".").read(NAME), ARRAY)


@pytest.mark.parametrize(
    "store",
    [
        {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": DOTTED},
        {"driver": "gfile", "path": f"{DOTTED}/"},
    ],
)
def test_reads_where_a_bucket_was_copied_to(folder, store):
    """The spec is never opened: the bucket may be gone."""
    folder.pack(folder.spec | {"kvstore": store})
    np.testing.assert_array_equal(T5XCheckpoint(folder.path).read(NAME), ARRAY)


def test_reads_the_specs_of_old_versions(folder):
    store = {"driver": "gcs", "bucket": "t5x-dummy-bucket"}
    folder.pack(folder.spec | {"kvstore": store, "path": DOTTED})
    np.testing.assert_array_equal(T5XCheckpoint(folder.path).read(NAME), ARRAY)


# === Specs ===


def test_absolute_path(folder, outside):
    for path in (outside, f"{outside}/", "/", folder.array):
        store = {"driver": "file", "path": str(path)}
        folder.pack(folder.spec | {"kvstore": store})
        refused(folder, NAME, f"kept in {DOTTED}", str(path))


@pytest.mark.parametrize(
    "path",
    [
        f"../elsewhere/{DOTTED}",
        f"./{DOTTED}",
        f"{DOTTED}//",
        f"{DOTTED}/../../elsewhere/{DOTTED}",
        "target.encoder.encoder_norm.scale/",
        "",
        None,
        3,
        [DOTTED],
    ],
)
def test_relative_path(folder, outside, path):
    folder.pack(folder.spec | {"kvstore": {"driver": "file", "path": path}})
    refused(folder, NAME, f"kept in {DOTTED}")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"driver": "json"}, ("driver zarr", "json")),
        ({"driver": "zarr3"}, ("driver zarr", "zarr3")),
        ({"driver": "cast", "base": {"driver": "zarr"}}, ("cast",)),
        ({"kvstore": f"file://{DOTTED}/"}, ("kept in one of", "None")),
        ({"kvstore": None}, ("kept in one of",)),
        ({"kvstore": {"path": DOTTED}}, ("kept in one of",)),
        (
            {
                "kvstore": {
                    "driver": "http",
                    "base_url": "http://127.0.0.1:9/",
                    "path": DOTTED,
                }
            },
            ("kept in one of", "http"),
        ),
        (
            {"kvstore": {"driver": "file", "path": DOTTED, "base": {}}},
            ("no other options", "base"),
        ),
        ({"transform": {"input_shape": [6]}}, ("options", "transform")),
        ({"context": {}}, ("no other options", "context")),
        ({"metadata": None}, ("positive sizes",)),
        ({"metadata": {"shape": "6"}}, ("positive sizes",)),
        ({"metadata": {"shape": [6, -40]}}, ("positive sizes",)),
        ({"metadata": {"shape": [6, True]}}, ("positive sizes",)),
        ({"metadata": {"shape": [1] * 9}}, ("positive sizes",)),
        ({"metadata": {"shape": [40, 6]}}, ("shape [40, 6]", "[6, 40]")),
        ({"metadata": {"shape": [1 << 40]}}, ("shape", "[6, 40]")),
        ({"dtype": "float16"}, ("dtype '<f2'", "<f4")),
        ({"dtype": "object"}, ("dtype 'object'",)),
        ({"dtype": "uint16"}, ("dtype 'uint16'",)),
        ({"dtype": "int32"}, ("dtype 'int32'",)),
        ({"dtype": None}, ("dtype None",)),
        ({"dtype": ["float32"]}, ("dtype ['float32']",)),
    ],
)
def test_specs_of_other_kinds(folder, change, words):
    folder.pack(folder.spec | change)
    refused(folder, NAME, *words)


# === .zarray ===


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [60, 40]}, ("of shape [6, 40]", "[60, 40]")),
        ({"shape": [6]}, ("of shape",)),
        ({"shape": [1 << 20, 1 << 20]}, ("of shape",)),
        ({"dtype": "<f8"}, ("of dtype '<f4'", "<f8")),
        ({"dtype": "|O"}, ("of dtype", "|O")),
        ({"dtype": ">f4"}, ("of dtype", ">f4")),
        ({"dtype": [["a", "<f4"]]}, ("of dtype",)),
        ({"zarr_format": 3}, ("of zarr_format 2",)),
        ({"order": "F"}, ("of order",)),
        ({"filters": [{"id": "pickle"}]}, ("of filters None", "pickle")),
        ({"dimension_separator": "/"}, ("of dimension_separator",)),
        ({"chunks": [6]}, ("in chunks within (6, 40)",)),
        ({"chunks": [3, 41]}, ("in chunks within",)),
        ({"chunks": [1 << 30, 1 << 30]}, ("in chunks within",)),
        ({"chunks": [0, 40]}, ("positive sizes",)),
        ({"chunks": None}, ("positive sizes",)),
        ({"compressor": {"id": "pickle"}}, ("gzip or blosc", "pickle")),
        ({"compressor": {"id": ["gzip"]}}, ("gzip or blosc",)),
        ({"compressor": "gzip"}, ("gzip or blosc", "'gzip'")),
        ({"compressor": {}}, ("gzip or blosc",)),
        ({"compressor": None}, ("whole", "480 bytes")),
    ],
)
def test_zarray_that_lies(folder, change, words):
    folder.zarray(**change)
    refused(folder, DOTTED, NAME, *words)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"shape": NaN}',
        '{"shape": [6, 40], "shape": [6, 40]}',
        "[" * 10000,
        " " * 20000 + "{}",
        "{}",
        "\udcff",
    ],
)
def test_zarray_that_is_none(folder, text):
    data = text.encode("utf-8", "surrogateescape")
    (folder.array / ".zarray").write_bytes(data)
    refused(folder, f"{DOTTED}/.zarray")


def test_claims_that_no_bytes_stand_for(tmp_path):
    """4 TB in `.zarray` and the spec alike, in one chunk of a few bytes."""
    folder = Folder(tmp_path)
    shape = [1 << 20, 1 << 20]
    folder.zarray(shape=shape, chunks=shape)
    folder.pack(folder.spec | {"metadata": {"shape": shape}})
    (folder.array / "1.0").unlink()
    refused(folder, NAME, f"whole, a chunk of {4 << 40} bytes")
    # The same with a length, in the last 4 bytes, that agrees.
    (folder.array / "0.0").write_bytes(bytes(8))
    refused(folder, NAME, f"whole, a chunk of {4 << 40} bytes")
    # In a million million chunks, of which one is there.
    folder.zarray(chunks=[1, 1], compressor=None)
    (folder.array / "0.0").write_bytes(bytes(4))
    refused(folder, NAME, "0.1", "there")


# === Chunks ===


@pytest.mark.parametrize("rows", [3, 4])  # 4: the last one is not full
@pytest.mark.parametrize("compressor", ["gzip", "blosc", None])
def test_missing_chunk(tmp_path, compressor, rows):
    """The others are there: zarr would read zeros."""
    folder = Folder(tmp_path, compressor, rows)
    (folder.array / "1.0").unlink()
    refused(folder, NAME, f"{DOTTED}/1.0", "No such file")


def test_chunk_that_is_gone_when_it_is_read(folder):
    checkpoint = T5XCheckpoint(folder.path)
    (folder.array / "1.0").unlink()
    with pytest.raises(CheckpointError, match="chunk {1, 0} .* is missing"):
        checkpoint.read(NAME)


@pytest.mark.parametrize("compressor", ["gzip", "blosc", None])
def test_truncated_chunk(tmp_path, compressor):
    folder = Folder(tmp_path, compressor)
    path = folder.array / "1.0"
    data = path.read_bytes()
    for left in (
        *range(0, 24),
        len(data) // 2,
        *range(len(data) - 24, len(data)),
    ):
        path.write_bytes(data[:left])
        with pytest.raises(CheckpointError) as caught:
            T5XCheckpoint(folder.path).read(NAME)
        assert DOTTED in str(caught.value), left


@pytest.mark.parametrize("compressor", ["gzip", "blosc", None])
def test_chunk_with_bytes_after_its_end(tmp_path, compressor):
    folder = Folder(tmp_path, compressor)
    with open(folder.array / "0.0", "ab") as file:
        file.write(b"abcd")
    with pytest.raises(CheckpointError, match=DOTTED):
        T5XCheckpoint(folder.path).read(NAME)


def test_damaged_chunk(folder):
    path = folder.array / "0.0"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(folder, DOTTED, NAME, "readable", read=True)


def test_chunk_that_unpacks_to_more(folder):
    """A bomb; its last bytes say what is wanted."""
    bomb = gzip.compress(bytes(1 << 26))[:-4] + (480).to_bytes(4, "little")
    (folder.array / "0.0").write_bytes(bomb)
    refused(folder, DOTTED, NAME, "readable", read=True)


def test_blosc_that_claims_memory(tmp_path):
    folder = Folder(tmp_path, "blosc")
    path = folder.array / "0.0"
    data = bytearray(path.read_bytes())
    data[4:8] = (2**31 - 64).to_bytes(4, "little")
    path.write_bytes(data)
    refused(folder, NAME, "whole", "2147483584")


# === Files ===


def test_missing_folder(folder):
    shutil.rmtree(folder.array)
    refused(folder, NAME, f"{DOTTED}/.zarray", "No such file")


@pytest.mark.parametrize("what", ["", ".zarray", "1.0"])
def test_links_out_of_the_folder(folder, outside, what):
    inside = folder.array / what
    shutil.rmtree(inside) if inside.is_dir() else inside.unlink()
    inside.symlink_to(outside / what)
    refused(folder, NAME, "in the folder", str(outside))
    # As good a link that is relative.
    inside.unlink()
    inside.symlink_to(os.path.relpath(outside / what, inside.parent))
    refused(folder, NAME, "in the folder", str(outside))


def test_folder_whose_name_begins_alike(folder):
    sibling = folder.path.with_name(folder.path.name + "0")
    shutil.copytree(folder.path, sibling)
    (folder.array / "1.0").unlink()
    (folder.array / "1.0").symlink_to(sibling / DOTTED / "1.0")
    with pytest.raises(CheckpointError, match="in the folder"):
        T5XCheckpoint(folder.path)


def test_links_within_the_folder_and_to_it(folder):
    """As a cache of downloads makes them."""
    (folder.array / "1.0").rename(folder.path / "blob")
    (folder.array / "1.0").symlink_to("../blob")
    link = folder.path.with_name("link")
    link.symlink_to(folder.path)
    np.testing.assert_array_equal(T5XCheckpoint(link).read(NAME), ARRAY)


def test_chunks_that_are_no_files(folder):
    path = folder.array / "1.0"
    path.unlink()
    os.mkfifo(path)  # to open it would wait for ever
    refused(folder, NAME, "in a file")
    path.unlink()
    path.mkdir()
    refused(folder, NAME, "in a file")


def test_without_tensorstore(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    checkpoint = T5XCheckpoint(folder.path)
    np.testing.assert_array_equal(checkpoint.read(OTHER), np.ones(4))
    with pytest.raises(ImportError, match="pip install .*convert"):
        checkpoint.read(NAME)
