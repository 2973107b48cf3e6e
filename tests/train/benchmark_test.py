"""The benchmark's flags and output: not how fast anything is."""

import json

import keras
import pytest
from absl import flags
from absl.testing import flagsaver

from keras_switch_train import (
    benchmark,
    checkpoint_cost,
    layer_speed,
    profile_layer,
    step_speed,
)
from keras_switch_train import flags as shared


@pytest.fixture(autouse=True)
def toy_sizes():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    with flagsaver.flagsaver(
        backend=keras.backend.backend(),
        tokens=[64],
        hidden_dim=8,
        intermediate_dim=[16],
        repeats=1,
        # The tests' own process is left as it is.
        retain_heap=False,
    ):
        yield


@pytest.fixture
def cells(monkeypatch):
    """Notes what would be compared."""
    found = []

    def compare(*arguments):
        found.append(arguments)
        return [{"ratio": "a / b"}]

    monkeypatch.setattr(layer_speed, "compare", compare)
    monkeypatch.setattr(step_speed, "compare", compare)
    monkeypatch.setattr(profile_layer, "profile", compare)
    return found


def test_layer_is_a_grid(cells):
    with flagsaver.flagsaver(
        experts=[2, 4],
        tokens=[64, 1024],
        intermediate_dim=[16, 32],
        dtypes=["float32", "bfloat16"],
        against=["einsum", "dense", "einsum"],
    ):
        rows = benchmark._layer()
    assert len(rows) == len(cells) == 16
    cell, rivals, backend, repeats, retain = cells[-1]
    assert cell == layer_speed.Cell(4, 1024, 8, 32, "bfloat16", 1.25, None)
    assert rivals == ["einsum", "dense"]
    assert (backend, repeats, retain) == (keras.backend.backend(), 1, False)


@pytest.mark.parametrize(
    "training, evaluation, factors",
    [
        ("capacity", "dropless", (1.25, None)),
        ("capacity", "capacity", (1.25, 1.25)),
        ("dropless", "dropless", (None, None)),
    ],
)
def test_capacities_of_training_and_evaluation(
    cells, training, evaluation, factors
):
    with flagsaver.flagsaver(
        experts=[2], training=training, evaluation=evaluation
    ):
        benchmark._layer()
    cell, rivals, *_ = cells[0]
    assert (cell.capacity_factor, cell.eval_capacity_factor) == factors
    assert tuple(rivals) == ("dense", "transformers")


@pytest.mark.parametrize("what", ["layer", "step", "generate"])
@pytest.mark.parametrize("given", [["flaxformer"], []])
def test_unknown_rivals_are_refused(cells, what, given):
    with flagsaver.flagsaver(what=what, against=given):
        with pytest.raises(
            shared.UsageError, match=f"--against must .*transformers.*{what}"
        ):
            getattr(benchmark, f"_{what}")()
    assert not cells


def test_profile_of_the_same_grid(cells):
    with flagsaver.flagsaver(
        experts=[2, 4], sides=["dense", "ours"], calls=["training"]
    ):
        benchmark._profile()
    assert [cell.experts for cell, *_ in cells] == [2, 4]
    assert cells[0][0] == layer_speed.Cell(2, 64, 8, 16, "float32", 1.25, None)
    how = (keras.backend.backend(), 1, False)
    assert cells[0][1:] == (["dense", "ours"], ["training"], *how)


def test_profile_by_default(cells, capsys):
    with flagsaver.flagsaver(what="profile", experts=[2], repeats=None):
        benchmark.main()
    _, sides, kinds, _, calls, _ = cells[0]
    assert (sides, kinds, calls) == (
        ["ours", "dense"],
        ["forward", "training"],
        5,
    )
    out = capsys.readouterr().out
    assert "transformers" not in json.loads(out[out.index("{") :])


def test_profile_of_tokens_that_fill_no_row(cells):
    with flagsaver.flagsaver(what="profile", tokens=[700]):
        with pytest.raises(shared.UsageError, match="--tokens .*received 700"):
            benchmark._profile()
    assert not cells


def test_repeats_by_default(cells):
    with flagsaver.flagsaver(experts=[2], repeats=None):
        benchmark._layer()
    assert cells[0][3] == 9


def test_a_step_has_no_dense_rival(cells):
    with flagsaver.flagsaver(what="step", against=["dense"]):
        with pytest.raises(shared.UsageError, match="received dense"):
            benchmark._step()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"tokens": [700]}, "--tokens .* multiple .* received 700"),
        ({"dtype": "mixed_bfloat16"}, "--dtype .* received mixed_bfloat16"),
        (
            {"training": "dropless", "evaluation": "capacity"},
            "--evaluation=capacity needs --training=capacity",
        ),
        (
            {"training": "dropless", "against": ["einsum"]},
            "--against=einsum needs --training=capacity",
        ),
    ],
)
def test_layers_that_cannot_be_compared_are_refused(cells, given, message):
    with flagsaver.flagsaver(**given):
        with pytest.raises(shared.UsageError, match=message):
            benchmark._layer()
    assert not cells


@pytest.mark.parametrize("training", ["capacity", "dropless"])
def test_step(cells, training):
    with flagsaver.flagsaver(what="step", experts=[2], training=training):
        benchmark._step()
    shape = cells[0][0]
    factor = 1.25 if training == "capacity" else None
    assert shape == step_speed.Shape(2, 8, 16, capacity_factor=factor)
    assert (shape.batch, shape.input, shape.target) == (8, 256, 64)


def test_flags_that_may_be_given_once():
    with flagsaver.flagsaver(what="plan", tokens=[64, 128]):
        with pytest.raises(shared.UsageError, match="--tokens may be given on"):
            benchmark._plan()


def test_plan_of_more_than_fits():
    with flagsaver.flagsaver(experts=[8, 70_000], tokens=[65_536]):
        with pytest.raises(shared.UsageError, match="--experts.*70000 experts"):
            benchmark._plan()


def test_flops_are_counted_on_jax_only():
    with flagsaver.flagsaver(backend="torch"):
        with pytest.raises(shared.UsageError, match="needs --backend=jax"):
            benchmark._flops()


def test_checkpoints_are_those_of_their_own_binary(monkeypatch):
    monkeypatch.setattr(
        checkpoint_cost, "measure_saves", lambda *a: {"arguments": a}
    )
    assert benchmark._checkpoint() == [{"arguments": (10, 1)}]


def test_figures_are_whole_or_absent(tmp_path, broken_rename, capsys):
    path = tmp_path / "plan.json"
    path.write_text("old")
    with flagsaver.flagsaver(experts=[4], what="plan", workdir=str(tmp_path)):
        with broken_rename():
            benchmark.main()
        assert path.read_text() == "old"
        benchmark.main()
    result = json.loads(path.read_text())
    assert result["what"] == "plan" and len(result["rows"]) == 2
    assert result["load at start"] >= 0 and result["load at end"] >= 0
    assert result["heap"] == "left alone" and "transformers" not in result
    assert "packed sort" in capsys.readouterr().out


def test_versions_of_a_side_are_in_the_header(cells, capsys):
    with flagsaver.flagsaver(experts=[2], what="step"):
        benchmark.main()
    out = capsys.readouterr().out
    head = json.loads(out[out.index("{") :])
    assert head["transformers"][0].isdigit() and head["torch"][0].isdigit()
    assert head["rows"] == [{"ratio": "a / b"}]
