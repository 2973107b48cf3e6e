"""Tables, files and plots of made-up rows."""

import json

import pytest
from PIL import Image

from keras_switch_train import plots, results

ROW = {
    "backend": "jax",
    "experts": 8,
    "kind": "forward",
    "ours ms": 2.0,
    "against": "transformers",
    "its ms": 4.0,
    "ratio": "transformers / ours",
    "medians": 2.0,
    "bests": 1.9,
    "target": ">= 1.8",
    "work": {"ours": {"kept tokens": 64}},
}
ROWS = [
    ROW,
    {**ROW, "kind": "training", "medians": 1.5, "target": None},
    {
        **ROW,
        "against": "dense",
        "ratio": "ours / dense",
        "medians": 1.1,
        "target": "<= 1.1",
    },
]


def test_what_is_the_same_is_said_once(capsys):
    results.show(ROWS)
    first, *table = capsys.readouterr().out.splitlines()
    assert "experts 8" in first and "backend jax" in first
    table = "\n".join(table)
    assert "experts" not in table and "work" not in table
    assert "ours / dense" in table and "1.5" in table and ">= 1.8" in table


def test_files_are_whole_or_absent(tmp_path, broken_rename):
    path = tmp_path / "layer.json"
    path.write_text("old")
    result = {"what": "layer", "rows": ROWS}
    with broken_rename():
        results.write(result, str(tmp_path))
    assert path.read_text() == "old"
    results.write(result, str(tmp_path))
    assert json.loads(path.read_text()) == result
    with Image.open(tmp_path / "layer.png") as image:
        assert min(image.size) > 100


def test_rows_without_ratios_have_no_plot(tmp_path):
    results.write({"what": "data", "rows": [{"a": 1}]}, str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]


def test_bars_are_labelled_by_what_differs():
    assert plots._label_names(ROWS) == ["kind"]
    other = [ROW, {**ROW, "experts": 32}]
    assert plots._label_names(other) == ["experts"]
    assert plots._label_names([ROW]) == ["experts"]
    assert plots._label(ROW, ["experts", "kind"]) == "experts 8, forward"


@pytest.mark.parametrize(
    "target, medians, reached",
    [
        (">= 1.8", 1.8, True),
        (">= 1.8", 1.79, False),
        ("<= 1.1", 1.1, True),
        ("<= 1.1", 1.11, False),
    ],
)
def test_targets_that_are_reached(target, medians, reached):
    row = {**ROW, "target": target, "medians": medians}
    assert plots._reached(row) == reached
