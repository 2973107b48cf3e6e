"""What is counted, at toy sizes."""

import keras
import pytest

from keras_switch_train import compiled_cost


def test_plan_of_both_methods():
    rows = compiled_cost.plan(64, [4], repeats=1)
    assert [row["method"] for row in rows] == ["packed sort", "one-hot cumsum"]
    for row in rows:
        assert row["tokens"] == 64 and row["experts"] == 4
        assert row["ms"] >= row["best ms"] > 0


def test_methods_that_disagree_are_refused(monkeypatch):
    planted = {"a": lambda index: index, "b": lambda index: index + 1}
    monkeypatch.setattr(compiled_cost, "_methods", lambda experts: planted)
    with pytest.raises(RuntimeError, match="must agree"):
        compiled_cost.plan(8, [2], repeats=1)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="only JAX counts FLOPs"
)
def test_flops_do_not_grow_with_experts():
    rows = compiled_cost.flops(512, 8, 256, [4, 16])
    assert rows[1]["SwitchLayer, growth"] < 1.1
    assert rows[1]["Qwen3-MoE block, growth"] > 3.5
