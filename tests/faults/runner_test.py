"""The runner: what it must notice, and the table it writes."""

import os
import subprocess
import sys
import time

import pytest

from tests.faults import runner
from tests.faults.runner import Case, Outcome


def wrong():
    assert 1 + 1 == 3, "sums are wrong"


def hungry():
    taken = b"x" * (200 << 20)
    assert taken
    time.sleep(30)


def starts_another():
    process = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    with open(os.environ["FAULTS_SHARED"], "w") as file:
        file.write(str(process.pid))


@pytest.mark.parametrize(
    ("case", "note"),
    [
        (Case("fine", lambda: None), ""),
        (Case("wrong", wrong), "AssertionError: sums are wrong"),
        (Case("late", lambda: time.sleep(60), seconds=0.3), "after 0.3 s"),
        (Case("hungry", hungry, megabytes=50), "killed at "),
        (Case("gone", lambda: os._exit(3)), "the process died"),
        (Case("exits", lambda: sys.exit(0)), "SystemExit: 0"),
    ],
    ids=lambda value: value.name if isinstance(value, Case) else "",
)
def test_a_case_that_is_not_survived_is_noticed(case, note, tmp_path):
    outcome = runner.run_case(case, tmp_path)
    assert note in outcome.note
    assert outcome.survived == (note == "")
    assert outcome.seconds < 20


def test_a_peak_between_two_looks_is_noticed(tmp_path):
    case = Case("peak", lambda: len(b"x" * (200 << 20)), megabytes=50)
    outcome = runner.run_case(case, tmp_path)
    assert not outcome.survived
    assert outcome.megabytes > 50


def test_what_a_case_started_ends_with_it(tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTS_SHARED", str(tmp_path / "pid"))
    (tmp_path / "own").mkdir()
    assert runner.run_case(Case("two", starts_another), tmp_path / "own")
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while runner.memory(pid=pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runner.memory(pid=pid)


def test_the_working_folder_is_the_case_s_own(tmp_path):
    case = Case("writes", lambda: open("here", "w").close())
    assert runner.run_case(case, tmp_path).survived
    assert (tmp_path / "here").exists()


def test_a_suite_replaces_its_own_section_alone(tmp_path):
    path = tmp_path / "faults.md"
    good = Outcome("a | b", True, 0.26, 3.4, "")
    bad = Outcome("c", False, 1, -1, "ValueError: no")
    runner.write_table("presets", [good], "jax", path)
    runner.write_table("kill", [good], "jax", path)
    first = path.read_text()
    assert first.count("survived 1/1") == 2
    runner.write_table("presets", [good, bad], "jax", path)
    text = path.read_text()
    assert text.count("## presets, jax\n") == 1
    assert "| a \\| b | yes | 0.3 | 3 |" in text
    assert "| c | **no**: ValueError: no | 1.0 | 0 |" in text
    assert text.index("## kill") < text.index("## presets")
    runner.write_table("presets", [good], "jax", path)
    assert path.read_text() == first
    runner.write_table("presets", [good], "jax", path, every=4)
    assert "tests.faults presets --every=4`: survived 1/1" in path.read_text()
