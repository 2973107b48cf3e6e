import json

import ml_dtypes
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.resume.store import CheckpointStore

ARRAYS = {
    "model/0000/a": np.arange(6, dtype="float32").reshape(2, 3),
    "seeds/0000/b": np.array([1, 2], "uint32"),
    "callbacks/0/c": np.array(3.5),
}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "run", keep=2)


def test_what_is_written_is_read(store):
    store.write(7, {"epoch": 1}, ARRAYS)
    newest = store.newest()
    assert newest.step == 7
    assert newest.record == {"format": 1, "step": 7, "epoch": 1}
    arrays = newest.arrays()
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_other_dtypes_are_kept_bit_by_bit(store):
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    store.write(1, {}, {"a": array})
    read = store.newest().arrays()["a"]
    assert read.dtype == "uint16"
    np.testing.assert_array_equal(read.view(ml_dtypes.bfloat16), array)


def test_there_is_no_checkpoint_at_first(store):
    assert store.newest() is None
    store.clean()


def test_the_oldest_go(store):
    for step in (1, 20, 3):
        store.write(step, {}, ARRAYS)
    names = sorted(path.name for path in store.directory.iterdir())
    assert names == ["step-000000003", "step-000000020"]
    assert store.newest().step == 20


def test_the_digests_are_those_of_sha256sum(store):
    import hashlib

    folder = store.write(1, {}, ARRAYS)
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        content = (folder / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "arrays.npz"),
        lambda folder: flip(folder / "record.json"),
        lambda folder: flip(folder / "SHA256SUMS"),
        lambda folder: (folder / "arrays.npz").unlink(),
        lambda folder: (folder / "SHA256SUMS").write_text(""),
        lambda folder: (folder / "more").write_text(""),
        lambda folder: folder.rename(folder.with_name("step-000000009")),
    ],
)
def test_a_damaged_one_is_moved_aside_and_the_one_before_is_used(store, damage):
    store.write(1, {}, ARRAYS)
    damage(store.write(2, {}, ARRAYS))
    with pytest.warns(UserWarning, match="damaged-step-00000000[29]"):
        assert store.newest().step == 1
    left = sorted(path.name for path in store.directory.iterdir())
    assert len(left) == 2 and left[0].startswith("damaged-step-")
    assert store.newest().step == 1  # without a warning


def test_two_damaged_ones_of_a_step_are_both_kept(store):
    store.write(1, {}, ARRAYS)
    for _ in range(3):
        flip(store.write(2, {}, ARRAYS) / "arrays.npz")
        with pytest.warns(UserWarning):
            store.newest()
    names = sorted(path.name for path in store.directory.glob("damaged-*"))
    assert names == [f"damaged-step-000000002{x}" for x in ("", "-2", "-3")]


def test_where_none_is_good_nothing_is_begun_anew(store):
    flip(store.write(1, {}, ARRAYS) / "arrays.npz")
    with pytest.warns(UserWarning):
        with pytest.raises(CheckpointError, match="only damaged ones"):
            store.newest()
    with pytest.raises(CheckpointError, match="only damaged ones"):
        store.newest()


def test_a_record_of_another_format_is_refused(store, tmp_path):
    from keras_switch.resume import store as module

    folder = store.write(1, {}, ARRAYS)
    record = json.loads((folder / "record.json").read_text())
    record["format"] = 2
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "SHA256SUMS").write_bytes(module._digests(folder))
    with pytest.warns(UserWarning, match="format must be 1; received 2"):
        with pytest.raises(CheckpointError):
            store.newest()


def test_a_failed_write_leaves_what_was_there(store, monkeypatch):
    store.write(1, {}, ARRAYS)
    with pytest.raises(TypeError):
        store.write(2, {"not": object()}, ARRAYS)
    assert [path.name for path in store.directory.iterdir()] == [
        "step-000000001"
    ]


def test_leftovers_of_killed_writers_are_removed(store):
    store.write(1, {}, ARRAYS)
    (store.directory / ".partial-x" / "new").mkdir(parents=True)
    assert store.newest().step == 1
    store.clean()
    assert [path.name for path in store.directory.iterdir()] == [
        "step-000000001"
    ]
