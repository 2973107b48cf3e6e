"""Arrays in pieces, in files of several processes, honest ones and others."""

import json

import ml_dtypes
import numpy as np
import pytest

from keras_switch.files import CheckpointError, sha256
from keras_switch.resume.pieces import Pieces, read_pieces, write_pieces

TABLE = np.arange(24, dtype="float32").reshape(4, 6)


def cut(array, size, starts=None):
    """Pieces of a size, all of them or some."""
    every = [
        (i, j)
        for i in range(0, array.shape[0], size[0])
        for j in range(0, array.shape[1], size[1])
    ]
    return Pieces(
        array.shape,
        {
            (i, j): array[i : i + size[0], j : j + size[1]]
            for i, j in (every if starts is None else starts)
        },
    )


@pytest.fixture
def paths(tmp_path):
    return [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


def written(paths, *parts):
    for path, arrays in zip(paths, parts, strict=True):
        write_pieces(path, arrays)
    return read_pieces(paths[: len(parts)])


@pytest.mark.parametrize(
    "array",
    [
        TABLE,
        np.array(3.5),
        np.zeros((0, 3), "int64"),
        np.array([True, False]),
        np.array([1, 2**32 - 1], "uint32"),
        np.array([1 + 2j]),
        np.array([["né", "o"]]),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.arange(12, dtype="int16").reshape(3, 4).T,
        np.arange(3, dtype="longdouble"),
    ],
)
def test_every_dtype_and_shape_comes_back(array, paths):
    # Something before it, so that it is not aligned.
    first = Pieces.whole(np.ones(3, "int8"))
    arrays = {"a": first, "b@,\n": Pieces.whole(array)}
    found = written(paths[:1], arrays)["b@,\n"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype.newbyteorder("<")
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int4"])
def test_dtypes_that_numpy_lacks_come_back_bit_by_bit(dtype, shape, paths):
    array = np.full(shape, 1.5).astype(getattr(ml_dtypes, dtype))
    found = written(paths[:1], {"a": Pieces.whole(array)})["a"]
    assert found.dtype == f"u{array.dtype.itemsize}" and found.shape == shape
    back = np.asarray(found.view(array.dtype))
    assert back.dtype == array.dtype and back.tobytes() == array.tobytes()


@pytest.mark.parametrize("size", [(4, 6), (2, 6), (1, 2), (2, 3)])
def test_any_part_is_read_from_any_pieces(size, paths):
    starts = list(cut(TABLE, size).pieces)
    found = written(
        paths,
        {"a": cut(TABLE, size, starts[::2])},
        {"a": cut(TABLE, size, starts[1::2])} if starts[1:] else {},
    )["a"]
    for first in range(4):
        for last in range(first, 5):
            part = (slice(first, last), slice(last, first + 3))
            np.testing.assert_array_equal(found[part], TABLE[part])
    np.testing.assert_array_equal(found, TABLE)


def test_no_more_is_read_than_is_asked_for(paths):
    found = written(paths[:1], {"a": cut(TABLE, (2, 3))})["a"]
    for start in [(0, 0), (0, 3), (2, 0)]:
        del found.pieces[start]
    part = (slice(3, None), slice(4, 5))
    np.testing.assert_array_equal(found[part], TABLE[part])


def test_the_file_is_one_that_others_read(paths):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {"a": cut(TABLE, (2, 6)), "b": Pieces.whole(np.array(7, "uint32"))}
    digest = write_pieces(paths[0], arrays)
    assert digest == sha256(paths[0])
    found = package.load_file(paths[0])
    assert sorted(found) == ["a@0,0", "a@2,0", "b@"]
    np.testing.assert_array_equal(found["a@2,0"], TABLE[2:])
    assert found["b@"] == 7


LONGER = np.concatenate([TABLE, TABLE])[:5]


@pytest.mark.parametrize(
    "one, other, message",
    [
        ([(0, 0)], [], "covered once"),
        ([(0, 0)], [(0, 3), (2, 0)], "covered once"),
        ([(0, 0), (2, 3)], [(0, 3), (2, 0), (0, 0)], "there once"),
    ],
)
def test_pieces_that_make_no_whole_are_refused(one, other, message, paths):
    parts = [{"a": cut(TABLE, (2, 3), s)} if s else {} for s in (one, other)]
    with pytest.raises(CheckpointError, match=f"a must be {message}"):
        written(paths, *parts)


@pytest.mark.parametrize(
    "pieces",
    [
        # They overlap, stand apart, have several shapes, or stand out.
        {(0, 0): TABLE[:2], (1, 0): TABLE[1:3]},
        {(0, 0): TABLE[:3], (1, 0): TABLE[1:]},
        {(0, 0): TABLE[:1], (2, 0): TABLE[2:]},
        {(0, 0): TABLE[:2], (4, 0): TABLE[2:]},
        {(0, 0): TABLE[:, :4], (0, 4): TABLE[:, 4:]},
        {(0, 0): LONGER},
        {(0, 0): TABLE[:3]},
    ],
)
def test_pieces_beside_the_grid_are_refused(pieces, paths):
    with pytest.raises(CheckpointError, match="covered once"):
        written(paths[:1], {"a": Pieces(TABLE.shape, pieces)})


def test_as_many_pieces_as_would_fill_it_are_not_enough():
    array = np.zeros((5, 4))
    starts = [(0, 0), (0, 2), (2, 0), (2, 2), (4, 0)]
    pieces = {start: np.zeros((2, 2)) for start in starts}
    assert not Pieces(array.shape, pieces).is_whole()


def test_processes_must_mean_the_same_array(paths):
    for other in (TABLE.astype("float64"), TABLE[:, :3]):
        with pytest.raises(CheckpointError, match="as before"):
            written(
                paths,
                {"a": cut(TABLE, (2, 3), [(0, 0)])},
                {"a": cut(other, (2, 3), [(2, 0)])},
            )


# === Files that are not what was written ===


def changed(path, change, data=None):
    """A file whose header was changed."""
    write_pieces(path, {"a": cut(TABLE, (2, 6))})
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = change(header) or header
    header = json.dumps(header).encode()
    data = content[8 + length :] if data is None else data
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def entry(**fields):
    return lambda header: header["a@0,0"].update(fields)


def array(**fields):
    def change(header):
        whole = {"a": {"dtype": "<f4", "shape": [4, 6], **fields}}
        header["__metadata__"]["arrays"] = json.dumps(whole)

    return change


@pytest.mark.parametrize(
    "change",
    [
        entry(dtype="F64"),
        entry(dtype=4),
        entry(shape=[2]),
        entry(shape=[3, 6]),
        entry(shape=[-2, -6]),
        entry(shape=[2.0, 6]),
        entry(shape=[True, 12]),
        entry(shape="26"),
        entry(shape=[2**62, 6]),
        entry(shape=[0, 2**61]),
        entry(shape=[1] * 40),
        entry(data_offsets=[0, 47]),
        entry(data_offsets=[48, 96]),
        entry(data_offsets=[-48, 0]),
        entry(data_offsets=None),
        entry(more=1),
        array(dtype="<f8"),
        array(dtype="|O"),
        array(dtype="<f3"),
        array(dtype="<U12"),
        array(dtype="f4,f4"),
        array(dtype=["<f4"]),
        array(shape=[4, 6, 1]),
        array(shape=[2**40, 6]),
        array(shape=[4, 2**61]),
        array(shape=None),
        array(more=1),
        lambda header: header.pop("__metadata__"),
        lambda header: header.update(__metadata__=[]),
        lambda header: header["__metadata__"].update(arrays={}),
        lambda header: header["__metadata__"].update(arrays="\ud800{"),
        lambda header: header["__metadata__"].update(arrays="[" * 99),
        lambda header: header["__metadata__"].update(more=""),
        lambda header: header.update({"b@0,0": header.pop("a@2,0")}),
        lambda header: header.update({"a@2": header.pop("a@2,0")}),
        lambda header: header.update({"a@2,-0": header.pop("a@2,0")}),
        lambda header: header.update({"a@2,²": header.pop("a@2,0")}),
        lambda header: header.update({"a": header.pop("a@2,0")}),
        lambda header: header.update({"a@9,9": header.pop("a@2,0")}),
        lambda header: header.pop("a@2,0"),
        lambda header: header.update({"a@2,0": 3}),
        lambda header: [header],
    ],
)
def test_headers_that_lie_are_refused(change, paths):
    with pytest.raises(CheckpointError):
        read_pieces([changed(paths[0], change)])


def test_the_header_that_is_written_is_not_refused(paths):
    read_pieces([changed(paths[0], lambda header: None)])


@pytest.mark.parametrize("data", [b"", b"\0" * 95, b"\0" * 97])
def test_data_of_another_length_is_refused(data, paths):
    with pytest.raises(CheckpointError):
        read_pieces([changed(paths[0], lambda header: None, data)])


def test_a_file_that_was_cut_is_refused(paths):
    write_pieces(paths[0], {"a": Pieces.whole(TABLE)})
    content = paths[0].read_bytes()
    for length in range(len(content)):
        paths[0].write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_pieces(paths[:1])
