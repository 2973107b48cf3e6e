"""Arrays in Keras' `.weights.h5` files, read without trusting them.

HDF5 can refer to other files, compute what it holds, or claim gigabytes in
a few bytes. Of all that only one thing is read here: a plain array that lies
in this file, as large as it says.
"""

from typing import Any, NamedTuple

import numpy as np

from keras_switch.files import CheckpointError
from keras_switch.models.preset_fields import Place
from keras_switch.models.preset_folder import INDEX, SHARD, WEIGHTS

_MAX_OBJECTS = 1 << 18
_MAX_DEPTH = 32
FLOATS = ("float64", "float32", "float16", "bfloat16")
_INTS = ("int8", "uint8", "int32", "uint32")
# What h5py raises for a file that is damaged.
_OF_HDF5 = (OSError, RuntimeError, KeyError, TypeError, ValueError)


class Stored(NamedTuple):
    """An array in a file; it has not been read yet."""

    file: Any  # number of the file
    dataset: Any  # h5py.Dataset
    dtype: str


class WeightFiles:
    """The arrays of a preset's weight files, by their path in them.

    Args:
        preset: A `PresetFolder`.

    Attributes:
        arrays: `Stored`, by path (`"layers/.../vars/0"`).

    Raises:
        CheckpointError: if the files hold anything but plain arrays of
            numbers, or are not those that the index lists.
    """

    def __init__(self, preset: Any) -> None:
        self.arrays: dict[str, Stored] = {}
        self._files, self._paths = [], []
        index = None
        names = [WEIGHTS]
        if not preset.has(WEIGHTS):
            index = _read_index(preset)
            names = sorted({name for files in index.values() for name in files})
        try:
            for name in names:
                self._open(preset.path(name), name, index)
            if index is not None:
                _check_index(preset, index, self._groups())
        except BaseException:
            self.close()
            raise

    def _open(self, path, name, index):
        import h5py

        try:
            self._paths.append(path)
            self._files.append(h5py.File(path, "r", rdcc_nbytes=0))
            self._list(path, name, index)
        except CheckpointError:
            raise
        except _OF_HDF5 as error:
            raise CheckpointError(
                path, "content", "a whole HDF5 file", str(error)
            ) from None

    def _list(self, path, name, index):
        number, total, size = len(self._files) - 1, 0, path.stat().st_size
        for key, dataset in _datasets(path, self._files[-1]):
            dtype = _check_dataset(Place(path, key), dataset)
            total += dataset.nbytes
            if key in self.arrays:
                raise CheckpointError(path, key, "in one file", "two")
            if index is not None and name not in index.get(_group(key), ()):
                raise CheckpointError(
                    path, key, f"where {INDEX} says", "in this file"
                )
            self.arrays[key] = Stored(number, dataset, dtype)
        if total > size:
            raise CheckpointError(
                path, "content", f"at most {size} bytes of arrays", total
            )

    def _groups(self):
        return {(_group(key), a.file) for key, a in self.arrays.items()}

    @property
    def count(self) -> int:
        """How many numbers are in all arrays."""
        return sum(int(a.dataset.size) for a in self.arrays.values())

    @property
    def whole(self) -> Place:
        """The place of all arrays, for messages."""
        return Place(self._paths[0], "")

    def place(self, key: str) -> Place:
        """Where an array stands, for messages."""
        return Place(self._paths[self.arrays[key].file], key)

    def read(self, key: str) -> np.ndarray:
        """Reads an array.

        Raises:
            CheckpointError: if the file is damaged where it lies.
        """
        _, dataset, dtype = self.arrays[key]
        try:
            values = dataset[()]
        except _OF_HDF5 as error:
            raise self.place(key).refuse("readable", str(error)) from None
        if dtype == "bfloat16":
            values = np.asarray(values).view(np.dtype(dtype))
        return np.asarray(values)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()


def _group(key):
    return f"/{key.rpartition('/')[0]}"


def _read_index(preset):
    """By group, the files that its arrays are in."""
    place = preset.place(INDEX, "weight_map")
    groups = preset.json(INDEX).get("weight_map")
    if not isinstance(groups, dict) or not groups:
        raise place.refuse("an object of file names", groups)
    index = {}
    for group, names in groups.items():
        names = names if isinstance(names, list) else [names]
        for name in names or [None]:
            if not isinstance(name, str) or not SHARD.fullmatch(name):
                raise (place / group).refuse(
                    "in files called model_00000.weights.h5 or so", name
                )
        index[group] = names
    return index


def _check_index(preset, index, found):
    listed = sum(len(set(names)) for names in index.values())
    if listed != len(found):
        raise preset.place(INDEX, "weight_map").refuse(
            f"of the {len(found)} groups that hold arrays", f"{listed}"
        )


def _datasets(path, file):
    """Names and datasets of a file, none of them reached by a detour."""
    import h5py

    seen, stack = set(), [("", file, 0)]
    while stack:
        prefix, group, depth = stack.pop()
        if len(seen) + len(group) > _MAX_OBJECTS or depth > _MAX_DEPTH:
            raise CheckpointError(
                path, "content", f"of at most {_MAX_OBJECTS} objects", "more"
            )
        for name in group:
            key = f"{prefix}{name}"
            place = Place(path, key)
            link = group.get(name, getlink=True)
            if type(link) is not h5py.HardLink:
                raise place.refuse("here", f"a {type(link).__name__}")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise place.refuse("there once", "it twice")
            seen.add(address)
            if isinstance(item, h5py.Group):
                stack.append((f"{key}/", item, depth + 1))
            elif isinstance(item, h5py.Dataset):
                yield key, item
            else:
                raise place.refuse("an array or a group", "something else")


def _check_dataset(place, dataset):
    """Refuses all but a plain array that lies in this file; its dtype."""
    import h5py

    created = dataset.id.get_create_plist()
    plain = created.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    plain = plain and not dataset.external and not created.get_nfilters()
    dtype, shape = dataset.dtype, dataset.shape
    if not plain:
        raise place.refuse(
            "a plain array", "one that is chunked, compressed or elsewhere"
        )
    # Keras writes bfloat16 as bytes without a meaning.
    name = "bfloat16" if dtype == np.dtype("V2") else dtype.name
    if name not in (*FLOATS, *_INTS) or shape is None or not dtype.isnative:
        raise place.refuse("an array of numbers", f"dtype {dtype}")
    stored = dataset.id.get_storage_size()
    if stored != dataset.nbytes:
        raise place.refuse(
            f"stored in {dataset.nbytes} bytes", f"{stored} bytes"
        )
    return name
