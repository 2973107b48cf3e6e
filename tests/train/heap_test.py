import subprocess
import sys

import pytest

from keras_switch_train import heap

# Frees and takes 64 MB over and over and counts the page faults.
LINES = """
import resource, sys
import numpy as np
from keras_switch_train import heap
line = heap.retain() if "retain" in sys.argv else ""
for turn in range(9):
    np.empty(64 * 2**20, 'uint8').fill(1)
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, line)
"""


def faults(*arguments):
    done = subprocess.run(
        [sys.executable, "-c", LINES, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    count, _, line = done.stdout.strip().partition(" ")
    return int(count), line


def test_freed_memory_is_taken_again_without_page_faults():
    kept, line = faults("retain")
    if "kept" not in line:
        pytest.skip(line)
    fresh, _ = faults()
    assert kept < 100 < fresh


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(
        heap.ctypes, "CDLL", lambda _: pytest.fail("must not be called")
    )
    assert heap.retain() == "heap: left alone, this is not glibc's malloc"


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("glibc", "2.41"))
    monkeypatch.setattr(heap.os.path, "exists", lambda path: True)
    monkeypatch.setattr(
        heap.ctypes, "CDLL", lambda _: pytest.fail("must not be called")
    )
    assert "accelerator" in heap.retain()


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_a_refusal_is_reported(refused, monkeypatch):
    answers = [1, 1, 1]
    answers[refused] = 0

    class Library:
        mallopt = staticmethod(lambda name, value: answers.pop(0))

    monkeypatch.setattr(heap.platform, "libc_ver", lambda: ("glibc", "2.41"))
    monkeypatch.setattr(heap.os.path, "exists", lambda path: False)
    monkeypatch.setattr(heap.ctypes, "CDLL", lambda _: Library)
    assert "refused" in heap.retain()
    assert not answers


RELEASE = """
import resource
import numpy as np
from keras_switch_train import heap
print(heap.retain())
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
np.empty(64 * 2**20, 'uint8').fill(1)
before = resident()
heap.release()
print(before - resident())
"""


def test_what_is_free_can_be_given_back():
    done = subprocess.run(
        [sys.executable, "-c", RELEASE],
        capture_output=True,
        text=True,
        check=True,
    )
    line, freed = done.stdout.strip().splitlines()
    if "kept" not in line:
        pytest.skip(line)
    assert int(freed) > 60 * 2**20
