"""Some cases of every suite; the whole runs by `python -m tests.faults`."""

import os
import subprocess
import sys

import keras
import pytest

from tests.faults.runner import ROOT

SUITES = ("flags", "generate", "imports", "isolation", "numbers", "presets")


@pytest.mark.slow
def test_some_cases_of_every_suite_are_survived():
    """In a process of its own, from which cases can be forked."""
    if keras.backend.backend() != "torch":
        pytest.skip("on the backend that compiles nothing")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--quick", *SUITES],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    for suite in SUITES:
        assert f"{suite}: survived " in done.stdout


def test_an_unknown_suite_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "surprise"],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": keras.backend.backend()},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    assert "received ['surprise']" in done.stderr
