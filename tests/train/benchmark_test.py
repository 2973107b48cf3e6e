"""The benchmark at toy sizes: what it measures, not how fast it is."""

import json

import keras
import pytest
from absl import flags
from absl.testing import flagsaver

from keras_switch_train import benchmark
from keras_switch_train import flags as shared


@pytest.fixture(autouse=True)
def toy_sizes():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    backend = keras.backend.backend()
    with flagsaver.flagsaver(
        backend=backend, tokens=64, hidden_dim=8, intermediate_dim=16, repeats=1
    ):
        yield


def test_plan_of_both_methods():
    with flagsaver.flagsaver(experts=[4]):
        rows = benchmark._plan()
    assert [row["method"] for row in rows] == ["packed sort", "one-hot cumsum"]
    for row in rows:
        assert row["tokens"] == 64 and row["experts"] == 4
        assert row["ms"] >= row["best ms"] > 0


def test_plan_of_more_than_fits():
    with flagsaver.flagsaver(experts=[8, 70_000], tokens=65_536):
        with pytest.raises(shared.UsageError, match="--experts.*70000 experts"):
            benchmark._plan()


def test_layer_beside_dense():
    with flagsaver.flagsaver(experts=[2]):
        dense, sparse = benchmark._layer()
    assert dense["layer"] == "dense" and sparse["layer"] == "switch, 2 experts"
    assert dense["forward / dense"] == dense["training / dense"] == 1.0
    assert sparse["forward ms"] > 0 and sparse["training ms"] > 0


def test_flops_do_not_grow_with_experts():
    if keras.backend.backend() != "jax":
        with pytest.raises(shared.UsageError, match="needs --backend=jax"):
            benchmark._flops()
        return
    with flagsaver.flagsaver(experts=[4, 16], tokens=512, intermediate_dim=256):
        rows = benchmark._flops()
    assert rows[1]["SwitchLayer, growth"] < 1.1
    assert rows[1]["Qwen3-MoE block, growth"] > 3.5


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
    assert "packed sort" in capsys.readouterr().out
