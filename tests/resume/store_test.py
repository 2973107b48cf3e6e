import json
import os

import ml_dtypes
import numpy as np
import pytest

from keras_switch.files import CheckpointError, sha256
from keras_switch.resume import store as module
from keras_switch.resume.pieces import Pieces
from keras_switch.resume.store import CheckpointStore

PART = "arrays-00000-of-00001.safetensors"
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
    assert newest.record == {"format": 2, "step": 7, "epoch": 1}
    arrays = newest.arrays
    assert list(arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_other_dtypes_are_kept_bit_by_bit(store):
    array = np.array([1.5, -2.0], ml_dtypes.bfloat16)
    store.write(1, {}, {"a": array})
    read = store.newest().arrays["a"]
    assert read.dtype == "uint16"
    np.testing.assert_array_equal(read.view(ml_dtypes.bfloat16), array)


def test_there_is_no_checkpoint_at_first(store):
    assert store.newest() is None
    store.begin()


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


def sum_again(folder):
    """As one who wants to deceive would."""
    names = sorted(path.name for path in folder.iterdir())[1:]
    lines = [f"{sha256(folder / name)}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(lines))


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / PART),
        lambda folder: flip(folder / "record.json"),
        lambda folder: flip(folder / "SHA256SUMS"),
        lambda folder: (folder / PART).unlink(),
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
        flip(store.write(2, {}, ARRAYS) / PART)
        with pytest.warns(UserWarning):
            store.newest()
    names = sorted(path.name for path in store.directory.glob("damaged-*"))
    assert names == [f"damaged-step-000000002{x}" for x in ("", "-2", "-3")]


def test_where_none_is_good_nothing_is_begun_anew(store):
    flip(store.write(1, {}, ARRAYS) / PART)
    with pytest.warns(UserWarning):
        with pytest.raises(CheckpointError, match="only damaged ones"):
            store.newest()
    with pytest.raises(CheckpointError, match="only damaged ones"):
        store.newest()


def test_a_record_of_another_format_is_refused(store):
    folder = store.write(1, {}, ARRAYS)
    record = json.loads((folder / "record.json").read_text())
    record["format"] = 3
    (folder / "record.json").write_text(json.dumps(record))
    sum_again(folder)
    with pytest.warns(UserWarning, match="format must be 2; received 3"):
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
    store.begin()
    assert [path.name for path in store.directory.iterdir()] == [
        "step-000000001"
    ]


# === Several processes, one after the other in one ===

TWO = [f"arrays-0000{i}-of-00002.safetensors" for i in range(2)]
ROWS = np.arange(12, dtype="float32").reshape(4, 3)


class Process:
    """What one of two processes sees and does."""

    def __init__(self, directory, index, monkeypatch):
        self.store = CheckpointStore(directory, keep=2)
        self.index, self._patch = index, monkeypatch

    def __enter__(self):
        self._context = self._patch.context()
        patch = self._context.__enter__()
        patch.setattr(module, "process_index", lambda: self.index)
        patch.setattr(module, "process_count", lambda: 2)
        patch.setattr(module, "is_writer", lambda: self.index == 0)
        patch.setattr(module.joint, "PATIENCE", 0.0)
        return self.store

    def __exit__(self, *error):
        return self._context.__exit__(*error)

    def write(self, step, run=0, not_finite=()):
        rows = slice(2 * self.index, 2 * self.index + 2)
        pieces = {(rows.start, 0): ROWS[rows]}
        arrays = {"model/a": Pieces(ROWS.shape, pieces), "b": np.ones(2)}
        with self as store:
            store._run = run
            return store.write(step, {}, arrays, not_finite)


@pytest.fixture
def two(store, monkeypatch):
    return [Process(store.directory, index, monkeypatch) for index in (0, 1)]


def test_each_process_writes_its_own_part_and_the_first_ends_it(store, two):
    assert two[1].write(5) is None
    assert store.newest() is None
    folder = two[0].write(5)
    assert [path.name for path in store.directory.iterdir()] == [folder.name]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["SHA256SUMS", *TWO, "record.json"]
    # Any number of processes reads it.
    arrays = store.newest().arrays
    np.testing.assert_array_equal(arrays["model/a"], ROWS)
    np.testing.assert_array_equal(arrays["b"], np.ones(2))
    assert b'"b"' not in (folder / TWO[1]).read_bytes()


def test_without_a_part_there_is_no_checkpoint(store, two):
    with pytest.raises(OSError, match="process 1 writes when its part"):
        two[0].write(5)
    assert list(store.directory.iterdir()) == []


def test_a_part_that_another_run_left_is_not_taken(store, two):
    two[1].write(5, run=1)
    with pytest.raises(OSError, match="process 1 writes when its part"):
        two[0].write(5, run=2)
    runs = set()
    for _ in range(2):
        store.begin()
        runs.add(store._run)
    assert len(runs) == 2
    assert list(store.directory.iterdir()) == []


def test_a_process_that_is_a_save_ahead_does_no_harm(store, two):
    for step in (5, 5, 6):
        two[1].write(step)
    for step in (5, 5, 6):
        assert two[0].write(step) == store.newest().folder
    assert len(list(store.directory.iterdir())) == 2


def test_only_the_first_process_cleans(store, two):
    leftover = store.directory / ".partial-x"
    leftover.mkdir(parents=True)
    with two[1] as other:
        other.begin()
    assert leftover.exists()
    with two[0] as first:
        first.begin()
    assert not leftover.exists()


@pytest.mark.parametrize("where", [0, 1])
def test_what_one_process_finds_not_finite_none_saves(store, two, where):
    bad = [[], []]
    bad[where] = ["model/a"]
    two[1].write(5, not_finite=bad[1])
    with pytest.warns(UserWarning, match="step 5 is not saved: .* in model/a"):
        assert two[0].write(5, not_finite=bad[0]) is None
    assert list(store.directory.iterdir()) == []


@pytest.mark.parametrize("missing", TWO)
def test_a_checkpoint_without_a_part_is_damaged(store, two, missing):
    two[1].write(5)
    folder = two[0].write(5)
    (folder / missing).unlink()
    sum_again(folder)
    with pytest.warns(UserWarning, match=r"without .'arrays-.* and with ..\."):
        with pytest.raises(CheckpointError, match="only damaged ones"):
            store.newest()


def test_parts_that_make_no_whole_are_damaged(store, two):
    two[1].write(5)
    folder = two[0].write(5)
    (folder / TWO[1]).write_bytes((folder / TWO[0]).read_bytes())
    sum_again(folder)
    with pytest.warns(UserWarning, match="must be there once; received"):
        with pytest.raises(CheckpointError, match="only damaged ones"):
            store.newest()


def test_processes_share_what_there_is_to_check(store, two, monkeypatch):
    two[1].write(5)
    folder = two[0].write(5)
    flip(folder / TWO[1], 0.999)  # not in its header, which both read
    with two[0]:
        assert module._look_at(folder)[1] == module._GOOD
    with two[1] as other:
        assert module._look_at(folder)[1] == module._BAD
        # The other leaves it to the first, which is told.
        other._put_aside(folder, None)
        assert folder.exists()
    with two[0] as first:
        monkeypatch.setattr(module, "largest", lambda found: module._BAD)
        monkeypatch.setattr(first, "_newest_step", iter([6, 0]).__next__)
        with pytest.warns(UserWarning, match="Another process has found"):
            with pytest.raises(CheckpointError, match="only damaged ones"):
                first.newest()


def test_a_folder_that_one_process_cannot_see_is_no_damage(
    store, two, monkeypatch
):
    folder = store.write(1, {}, ARRAYS)
    monkeypatch.setattr(module, "_UNTIL_SEEN", 0.0)
    with two[1] as other:
        monkeypatch.setattr(other, "_newest_step", lambda: 3)
        with pytest.raises(CheckpointError, match="seen by every process"):
            other.newest()
    assert folder.exists()


# === What is no checkpoint of this version ===


def test_one_of_an_earlier_version_is_refused_and_stays(store):
    folder = store.directory / "step-000000003"
    folder.mkdir(parents=True)
    np.savez(folder / "arrays.npz", **{"model/0000/a": np.ones(2)})
    (folder / "record.json").write_text('{"format": 1, "step": 3}')
    sum_again(folder)
    with pytest.raises(CheckpointError, match="of an earlier one. Finish the"):
        store.newest()
    assert folder.is_dir()


@pytest.mark.parametrize("name", [PART, "record.json", "SHA256SUMS"])
def test_pipes_and_links_out_of_the_folder_are_not_opened(store, name):
    for replace in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        folder = store.write(1, {}, ARRAYS)
        (folder / name).unlink()
        replace(folder / name)
        with pytest.warns(UserWarning, match="file must be"):
            with pytest.raises(CheckpointError, match="only damaged ones"):
                store.newest()
