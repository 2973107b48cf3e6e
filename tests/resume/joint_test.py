"""Processes that meet in a folder, one after the other in one process."""

import json
import threading

import pytest

from keras_switch.resume import joint


def write(path):
    path.write_text("whole")
    return "digest"


def test_a_report_comes_after_the_file(tmp_path):
    folder = tmp_path / "a" / "b"

    def look(path):
        assert not list(folder.glob("report-*"))
        return write(path)

    joint.hand_in(folder, 1, "one", look)
    joint.hand_in(folder, 0, "zero", look_at_one(folder))
    assert joint.reports(folder, 2, 9) == [{"digest": "digest"}] * 2
    assert (folder / "one").read_text() == "whole"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["one", "report-00000.json", "report-00001.json", "zero"]


def look_at_one(folder):
    def look(path):
        assert [p.name for p in folder.glob("report-*")] == [
            "report-00001.json"
        ]
        return write(path)

    return look


def test_the_first_waits_for_the_last(tmp_path):
    joint.hand_in(tmp_path, 0, "zero", write)
    late = threading.Timer(0.3, joint.report, (tmp_path, 1, {"a": 1}))
    late.start()
    assert joint.reports(tmp_path, 2, 9) == [{"digest": "digest"}, {"a": 1}]
    late.join()


def test_a_process_without_a_report_is_named(tmp_path):
    joint.hand_in(tmp_path, 0, "zero", write)
    (tmp_path / "one").write_text("without a report")
    with pytest.raises(OSError, match="process 1 .* must be there within 0 s"):
        joint.reports(tmp_path, 2, patience=0.0)


def test_a_full_disk_is_reported(tmp_path):
    def full(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as error:
        joint.hand_in(tmp_path, 1, "one", full)
    assert error.value.errno == 28
    assert not (tmp_path / "one").exists()
    joint.hand_in(tmp_path, 0, "zero", write)
    with pytest.raises(OSError, match="process 1 could not .* No space left"):
        joint.reports(tmp_path, 2, 9)


def test_a_disk_without_room_for_a_report(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(OSError, match="No space left"):
        joint.hand_in(tmp_path, 1, "one", full)
    monkeypatch.undo()
    joint.hand_in(tmp_path, 0, "zero", write)
    with pytest.raises(OSError, match="process 1 could not .* nor why not"):
        joint.reports(tmp_path, 2, 9)
