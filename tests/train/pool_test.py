"""Processes that train, one on each core."""

import functools
import os
import sys

import pytest

from keras_switch_train import cores, pool


def start(folder, code, core):
    (folder / "log.txt").parent.mkdir(exist_ok=True)
    return pool.Process(str(folder), [sys.executable, "-c", code], core)


def test_each_on_a_core_of_its_own(tmp_path):
    before = cores.ids()
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    starts = [
        functools.partial(start, tmp_path / str(i), code) for i in range(3)
    ]
    assert pool.run(starts, before[:1]) == []
    for i in range(3):
        said = (tmp_path / str(i) / "log.txt").read_text()
        assert said == f"[{before[0]}]\n"
    assert cores.ids() == before


def test_those_that_fail_are_told_apart(tmp_path):
    codes = {"good": "pass", "bad": "raise SystemExit('no such thing')"}
    starts = [
        functools.partial(start, tmp_path / name, code)
        for name, code in codes.items()
    ]
    (failed,) = pool.run(starts, cores.ids())
    assert failed.code == 1
    assert failed.tail() == f"{tmp_path}/bad, exit code 1:\nno such thing"


def test_an_error_stops_those_that_run(tmp_path):
    def broken(core):
        raise RuntimeError("cannot start")

    slow = "import time; time.sleep(600)"
    running = []

    def first(core):
        running.append(start(tmp_path / "slow", slow, core))
        return running[0]

    with pytest.raises(RuntimeError, match="cannot start"):
        pool.run([first, broken], [cores.ids()[0], cores.ids()[-1] + 1])
    assert running[0].ended()
