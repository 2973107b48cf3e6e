"""What stands in the statistics, by hand. Over whole layers, and in the
models' metrics, they are held to the oracle elsewhere."""

import numpy as np
import pytest
from keras import ops

from keras_switch.layers.routing_stats import STATISTICS, RoutingStats
from tests import bridge

LOG2 = np.log(2.0)
# Two tokens and one of padding, two experts.
PROBS = np.array([[[0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]], "float32")


def record(probs, expert_index, first, dropped, valid):
    stats = RoutingStats()
    stats.build()
    logits = np.log(np.maximum(probs, 1e-30))
    fields = (logits, probs, expert_index, first, dropped, valid)
    stats(*map(ops.convert_to_tensor, fields))
    return dict(
        zip(
            (*STATISTICS, "tokens"),
            bridge.numpy(stats.value).tolist(),
            strict=True,
        )
    )


def test_by_hand():
    first = np.array([[0, 0, 2]], "int32")
    valid = np.array([[True, True, False]])
    values = record(PROBS, first, first, np.float32(0.25), valid)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    wanted = {
        "dropped_fraction": 0.25,
        "max_mean_load": 2.0,  # both tokens to one of two experts
        "dead_expert_fraction": 0.5,
        "router_confidence": (0.75 + 0.5) / 2,
        "router_entropy": (entropy + LOG2) / 2,
        "load_balancing_loss": 2 * 1.0 * 0.625,
        "router_z_loss": 0.0,  # logits are log-probabilities
        "tokens": 2.0,
    }
    assert values == pytest.approx(wanted, abs=1e-6)


def test_uniform_and_sure():
    uniform = np.full((1, 4, 4), 0.25, "float32")
    first = np.arange(4, dtype="int32")[None]
    valid = np.ones((1, 4), bool)
    values = record(uniform, first, first, np.float32(0), valid)
    assert values["max_mean_load"] == pytest.approx(1)
    assert values["dead_expert_fraction"] == 0
    assert values["router_entropy"] == pytest.approx(np.log(4))
    sure = np.eye(4, dtype="float32")[None]
    values = record(sure, first, first, np.float32(0), valid)
    assert values["router_entropy"] == pytest.approx(0, abs=1e-6)
    assert values["router_confidence"] == pytest.approx(1)


def test_no_token():
    nowhere = np.full((1, 3), 2, "int32")
    valid = np.zeros((1, 3), bool)
    values = record(PROBS, nowhere, nowhere, np.float32(0), valid)
    assert set(values.values()) == {0.0}


def test_is_not_trained():
    stats = RoutingStats()
    stats.build()
    assert not stats.trainable_variables
    assert stats.value.dtype == "float32"
