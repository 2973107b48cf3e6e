"""How two processes are asked, and when they are not to be compared."""

import io
import json
import sys

import pytest

from keras_switch_train import workers

SAME = {"tokens": 64, "FLOPs": 1000, "dtype": "float32", "heap": "kept"}


class Side:
    """Answers as a worker, and notes whose turn it was."""

    def __init__(self, name, seconds, turns):
        self.name, self.seconds, self.turns = name, iter(seconds), turns

    def ask(self, do):
        self.turns.append((self.name, do))
        return {"seconds": next(self.seconds)}


def test_sides_take_turns_forth_and_back(monkeypatch):
    monkeypatch.setattr(workers.time, "sleep", lambda _: None)
    turns = []
    sides = {n: Side(n, s, turns) for n, s in (("a", [1, 3]), ("b", [2, 4]))}
    samples = workers.in_turns(sides, 2, do="forward")
    assert samples == {"a": [1, 3], "b": [2, 4]}
    assert [name for name, _ in turns] == ["a", "b", "b", "a"]
    assert {do for _, do in turns} == {"forward"}


def test_spread_and_ratio():
    columns = workers.spread("ours", [0.003, 0.001, 0.002], 1e3, "ms")
    assert columns == {"ours ms": 2.0, "ours best": 1.0, "ours worst": 3.0}
    assert workers.spread("its", [1.23456e-5], 1e3, "ms")["its ms"] == 0.01235
    found = workers.ratio([0.003, 0.001, 0.002], [0.004, 0.004, 0.004])
    assert found == {"medians": 0.5, "bests": 0.25}


@pytest.mark.parametrize(
    "name, value", [("tokens", 63), ("dtype", "bfloat16"), ("heap", "left")]
)
def test_other_work_is_refused(name, value):
    workers.require_same({"ours": SAME, "theirs": dict(SAME)}, list(SAME))
    records = {"ours": SAME, "theirs": {**SAME, name: value}}
    with pytest.raises(RuntimeError, match=f"their {name} differ: .*theirs"):
        workers.require_same(records, list(SAME))


def test_numbers_may_differ_by_a_tolerance():
    records = {"ours": SAME, "theirs": {**SAME, "FLOPs": 1001}}
    workers.require_same(records, ["FLOPs"], tolerance=1e-3)
    with pytest.raises(RuntimeError, match="FLOPs differ: 1000"):
        workers.require_same(records, ["FLOPs"])


def test_a_process_that_ends_is_told_by_name():
    worker = workers.Worker("no_such_worker", ["side"], "jax", False)
    with pytest.raises(RuntimeError, match="no_such_worker side must answer"):
        worker.ask(do="work")
    worker.close()


def test_serve_answers_requests_and_keeps_other_lines_out(capfd, monkeypatch):
    def make(side):
        print("a line that is no answer")
        return lambda number: {"sum": number + len(side)}

    requests = io.StringIO('{"number": 1}\n{"number": 2}\n')
    monkeypatch.setattr(sys, "stdin", requests)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)
    kept = workers.os.dup(1)
    try:
        workers.serve(make, ["leave", "abc"])
    finally:
        workers.os.dup2(kept, 1)
        workers.os.close(kept)
    lines = capfd.readouterr().out.splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    assert "left alone" in answers[0]["heap"]
    assert answers[1:] == [{"sum": 4}, {"sum": 5}]
