"""HDF5 files: plain arrays are read, everything else is refused.

More of what is refused: tests/faults/hostile_weights.py.
"""

import json

import h5py
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.models.preset_arrays import WeightFiles
from keras_switch.models.preset_folder import PresetFolder

VALUES = np.arange(6, dtype="float32").reshape(2, 3)


def opened(folder):
    return WeightFiles(PresetFolder(folder, trusted=True))


def write(folder, function, name="model.weights.h5"):
    with h5py.File(folder / name, "w") as file:
        function(file)
    return folder


def test_plain_arrays(tmp_path):
    def fill(file):
        file["layers/a/vars/0"] = VALUES
        file["layers/a/vars/1"] = np.int8(7)
        half = VALUES.astype(np.dtype("bfloat16"))
        file.create_dataset("layers/b/vars/0", data=half)
        file.create_group("layers/empty/vars")

    files = opened(write(tmp_path, fill))
    assert {k: a.dtype for k, a in files.arrays.items()} == {
        "layers/a/vars/0": "float32",
        "layers/a/vars/1": "int8",
        "layers/b/vars/0": "bfloat16",
    }
    assert files.count == 13
    np.testing.assert_array_equal(files.read("layers/a/vars/0"), VALUES)
    assert files.read("layers/a/vars/1") == 7
    half = files.read("layers/b/vars/0")
    assert half.dtype.name == "bfloat16"
    np.testing.assert_array_equal(half.astype("float32"), VALUES)
    files.close()


def _twice(file):
    file["a"] = VALUES
    file["b"] = file["a"]


@pytest.mark.parametrize(
    ("fill", "message"),
    [
        (lambda f: f.create_dataset("a", data=VALUES, chunks=True), "chunked"),
        (lambda f: f.create_dataset("a", (9,), "f4"), "stored in 36 bytes"),
        (lambda f: f.update(a=h5py.SoftLink("/b")), "a SoftLink"),
        (lambda f: f.update(a=h5py.ExternalLink("b", "/")), "ExternalLink"),
        (lambda f: f.update(a=VALUES > 1), "dtype bool"),
        (lambda f: f.update(a=VALUES.astype(">f4")), "dtype >f4"),
        (lambda f: f.update(a=np.dtype("f4")), "an array or a group"),
        (lambda f: _twice(f), "must be there once; received it twice"),
        (lambda f: f.update(a=f["/"]), "received it twice"),
    ],
)
def test_what_is_refused(tmp_path, fill, message):
    write(tmp_path, fill)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path)


def test_a_damaged_file(tmp_path):
    path = write(tmp_path, lambda f: f.update(a=VALUES)) / "model.weights.h5"
    whole = path.read_bytes()
    for data in (b"", b"no", whole[:-1], whole[:600], whole[:96] + whole[300:]):
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            opened(tmp_path)
        assert caught.value.file == str(path)


def shards(folder, places, names=("a", "b")):
    for i, name in enumerate(names):
        key = f"layers/{name}/vars/0"
        write(
            folder,
            lambda f, key=key: f.update({key: VALUES}),
            f"model_{i:05}.weights.h5",
        )
    index = {"weight_map": places}
    (folder / "model.weights.json").write_text(json.dumps(index))
    return folder


ONE, TWO = "model_00000.weights.h5", "model_00001.weights.h5"


def test_shards(tmp_path):
    places = {"/layers/a/vars": ONE, "/layers/b/vars": [TWO]}
    files = opened(shards(tmp_path, places))
    assert set(files.arrays) == {"layers/a/vars/0", "layers/b/vars/0"}
    np.testing.assert_array_equal(files.read("layers/b/vars/0"), VALUES)
    assert files.place("layers/b/vars/0").file.name == TWO
    files.close()


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({}, "an object of file names"),
        ([ONE], "an object of file names"),
        ({"/layers/a/vars": []}, "in files called"),
        ({"/layers/a/vars": "../a.weights.h5"}, "in files called"),
        ({"/layers/a/vars": 7}, "in files called"),
        ({"/layers/a/vars": TWO, "/layers/b/vars": ONE}, "where model.weights"),
        ({"/layers/a/vars": ONE, "/layers/b/vars": ONE}, "of the 1 groups"),
        (
            {"/layers/a/vars": ONE, "/layers/b/vars": TWO, "/c": ONE},
            "of the 2 groups that hold arrays; received 3",
        ),
    ],
)
def test_an_index_that_is_not_true(tmp_path, places, message):
    with pytest.raises(CheckpointError, match=message):
        opened(shards(tmp_path, places))


def test_an_array_in_two_shards(tmp_path):
    places = {"/layers/a/vars": [ONE, TWO]}
    with pytest.raises(CheckpointError, match="in one file; received two"):
        opened(shards(tmp_path, places, names=("a", "a")))
