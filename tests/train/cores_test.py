"""The cores of a process, with and without a system that tells them."""

import os
import subprocess
import sys

import pytest

from keras_switch_train import cores


def test_ids_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert cores.ids() == [0, 1, 2]


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="the system cannot pin"
)
def test_pin():
    last = cores.ids()[-1]
    program = (
        "from keras_switch_train import cores;"
        f"cores.pin({last}); print(cores.ids())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.strip() == f"[{last}]", done.stderr
