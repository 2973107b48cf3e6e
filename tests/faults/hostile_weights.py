"""Preset folders whose weights are not what they must be."""

import functools
import json

import h5py
import numpy as np

from tests.faults.hostile_files import SECRET, Fault, change, here

_WEIGHTS, _INDEX = "model.weights.h5", "model.weights.json"


def faults() -> list[Fault]:
    """Faults of weights."""
    return [*_of_files(), *_of_arrays(), *_of_structure(), *_of_shards()]


def _bytes(edit):
    def spoil(folder):
        path = folder / _WEIGHTS
        path.write_bytes(edit(path.read_bytes()))

    return spoil


def _of_files():
    for name, edit in (
        ("no HDF5 at all", lambda data: b"PK\x03\x04" + data[4:]),
        ("half a file", lambda data: data[: len(data) // 2]),
        ("all but a byte", lambda data: data[:-1]),
        ("a header alone", lambda data: data[:512]),
        ("a root group that is zeros", lambda d: d[:96] + bytes(400) + d[496:]),
    ):
        yield Fault(f"weights: {name}", _bytes(edit), _WEIGHTS, "backbone")


def _paths(file):
    found = []
    file.visititems(
        lambda name, item: (
            found.append(name) if isinstance(item, h5py.Dataset) else None
        )
    )
    return sorted(found)


def _edit(function, which=-1):
    """A function that edits one array of the weights: the last, by default."""

    def spoil(folder):
        with h5py.File(folder / _WEIGHTS, "r+") as file:
            path = _paths(file)[which]
            values = file[path][()]
            del file[path]
            function(file, path, values)

    return spoil


def _values(change):
    def put(file, path, values):
        file[path] = change(values)

    return put


def _poke(value):
    def change(values):
        values = values.copy()
        values.reshape(-1)[-1] = value
        return values

    return change


def _of_arrays():
    last = {
        "NaN": _poke(np.nan),
        "infinity": _poke(np.inf),
        "minus infinity": _poke(-np.inf),
        "a dimension more": lambda v: v[None],
        "a row less": lambda v: v[:-1],
        "a row more": lambda v: np.concatenate([v, v[:1]]),
        "the same numbers in another shape": lambda v: v.reshape(
            -1 if v.ndim > 1 else (v.size, 1)
        ),
        "one number": lambda v: np.float32(1),
        "booleans": lambda v: v > 0,
        "whole numbers": lambda v: v.astype("int8"),
        "whole numbers of 64 bits": lambda v: v.astype("int64"),
        "complex numbers": lambda v: v.astype("complex64"),
        "numbers back to front": lambda v: v.astype(">f4"),
        "text": lambda v: np.full(v.shape, "a", "S4"),
        "records": lambda v: v.astype([("a", "f4"), ("b", "f4")]),
    }
    for name, function in last.items():
        for which in (0, -1):
            where = "first" if which == 0 else "last"
            yield Fault(
                f"weights: {name} in the {where} array",
                _edit(_values(function), which),
                _WEIGHTS,
                "backbone",
            )
    yield Fault(
        "weights: more than float16 holds, loaded in it",
        _edit(_values(_poke(1e6))),
        "finite",
        "float16",
    )


def _external(file, path, values):
    file[path] = h5py.ExternalLink(str(here() / SECRET), "/a")


def _elsewhere(file, path, values):
    place = [(str(here() / SECRET), 0, values.nbytes)]
    file.create_dataset(path, values.shape, values.dtype, external=place)


def _virtual(file, path, values):
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(str(here() / SECRET), "a", values.shape)
    file.create_virtual_dataset(path, layout)


def _moved(file, path, values):
    file[path + "0"] = values


def _soft(file, path, values):
    file["hidden"] = values
    file[path] = h5py.SoftLink("/hidden")


def _twice(file, path, values):
    file[path] = values
    file["again"] = file[path]


def _unwritten(file, path, values):
    # HDF5 takes room for it when it is written, and reads zeros before.
    file.create_dataset(path, values.shape, values.dtype)


def _bomb(file, path, values):
    shape = (1 << 17, 1 << 17)
    file.create_dataset(path, shape, "f4", chunks=(1 << 10,) * 2, fillvalue=1)


def _large(file, path, values):
    file.create_dataset(path, (1 << 40,), "f4")


def _none(file, path, values):
    file[path] = h5py.Empty("f4")


def _ragged(file, path, values):
    kind = h5py.vlen_dtype(np.dtype("f4"))
    file.create_dataset(path, values.shape[:1], kind)


def _pointer(file, path, values):
    data = file.create_dataset(path, (1,), h5py.ref_dtype)
    data[0] = file.ref


def _type(file, path, values):
    file[path] = np.dtype("f4")


def _group(file, path, values):
    file.create_group(path)["0"] = values


def _cycle(file, path, values):
    file[path] = values
    file["cycle"] = file["/"]


def _crowd(file, path, values):
    file[path] = values
    crowd = file.create_group("crowd", track_order=False)
    # Groups would take a minute to make; links to one cost nothing.
    for i in range(20_000):
        crowd[str(i)] = h5py.SoftLink("/")


def _deep(file, path, values):
    file[path] = values
    group = file
    for _ in range(200):
        group = group.create_group("a")


def _filtered(**options):
    def put(file, path, values):
        file.create_dataset(path, data=values, **options)

    return put


def _of_structure():
    for name, function in (
        ("a link to another file", _external),
        ("numbers that lie in another file", _elsewhere),
        ("numbers made from another file", _virtual),
        ("a link to another place", _soft),
        ("an array under two names", _twice),
        ("an array that was never written", _unwritten),
        ("64 GiB that take no room", _bomb),
        ("4 TiB that take no room", _large),
        ("an array that is missing", lambda *_: None),
        ("an array under another name", _moved),
        ("an array without values", _none),
        ("rows of any length", _ragged),
        ("references", _pointer),
        ("a type in place of an array", _type),
        ("a group in place of an array", _group),
        ("a group in itself", _cycle),
        ("20,000 links", _crowd),
        ("groups 200 deep", _deep),
        ("an array in chunks", _filtered(chunks=True)),
        ("an array in gzip", _filtered(compression="gzip")),
        ("an array with checksums", _filtered(fletcher32=True)),
    ):
        yield Fault(f"weights: {name}", _edit(function), _WEIGHTS, "backbone")

    def more(folder):
        with h5py.File(folder / _WEIGHTS, "r+") as file:
            file["layers/surprise/vars/0"] = np.zeros(3, "f4")

    yield Fault("weights: an array more", more, "surprise", "backbone")


def _shards(spoil):
    """Edits the index of a preset in shards."""

    def edit(content):
        spoil(content["weight_map"])

    return change(_INDEX, edit)


def _all_in(name):
    def spoil(places):
        for group in places:
            places[group] = name

    return spoil


def _of_shards():
    for name, spoil in (
        ("../secret", _all_in(f"../{SECRET}")),
        ("an absolute path", _all_in("/etc/passwd")),
        ("a shard called a pickle", _all_in("model_00000.pkl")),
        ("a shard that is not there", _all_in("model_09999.weights.h5")),
        ("one shard for all", _all_in("model_00000.weights.h5")),
        ("a number for a shard", _all_in(7)),
        ("no shard", _all_in([])),
        ("nothing", dict.clear),
        (
            "a group that is not there",
            lambda places: places.update({"/a": "model_00000.weights.h5"}),
        ),
        ("a group less", dict.popitem),
    ):
        yield Fault(
            f"an index that names {name}",
            _shards(spoil),
            "model",
            "backbone",
            preset="shards",
        )
    for name, edit in (
        ("a list", lambda content: []),
        ("a map that is a list", lambda content: {"weight_map": []}),
    ):
        yield Fault(
            f"an index that is {name}",
            change(_INDEX, edit),
            _INDEX,
            "backbone",
            preset="shards",
        )
    names = ["model_00000.weights.h5", "model_00001.weights.h5"]
    yield Fault(
        "an array in two shards",
        functools.partial(_copy_between, names=names),
        "model",
        "backbone",
        preset="shards",
    )


def _copy_between(folder, names):
    with h5py.File(folder / names[0]) as one:
        path = _paths(one)[0]
        values = one[path][()]
    with h5py.File(folder / names[1], "r+") as other:
        other[path] = values
    content = json.loads((folder / _INDEX).read_text())
    content["weight_map"]["/" + path.rpartition("/")[0]] = names
    (folder / _INDEX).write_text(json.dumps(content))
