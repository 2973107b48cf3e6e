import numpy as np
import pytest

from keras_switch.layers.routing_stats import STATISTICS
from keras_switch.layers.switch_layer import SwitchLayer
from keras_switch.models.routing_metrics import RoutingMetrics


@pytest.fixture
def layers():
    layers = {"a": SwitchLayer(2, 4), "b": SwitchLayer(2, 4)}
    for layer in layers.values():
        layer.build((None, None, 3))
    return layers


def record(layer, statistics, tokens):
    values = [statistics] * len(STATISTICS) + [tokens]
    layer.routing_stats.value.assign(np.array(values, "float32"))


def results(metrics):
    return {name: float(value) for name, value in metrics.result().items()}


def test_batches_count_by_their_tokens(layers):
    metrics = RoutingMetrics(layers)
    record(layers["a"], 0.5, 3)
    record(layers["b"], 2.0, 1)
    metrics.update_state()
    record(layers["a"], 0.1, 1)
    record(layers["b"], float("nan"), 0)
    metrics.update_state()
    values = results(metrics)
    assert set(values) == {f"{n}/{s}" for n in "ab" for s in STATISTICS}
    for statistic in STATISTICS:
        assert values[f"a/{statistic}"] == pytest.approx(0.4)
        assert values[f"b/{statistic}"] == pytest.approx(2.0)


def test_the_mean_over_the_layers(layers):
    metrics = RoutingMetrics(layers, per_layer=False)
    record(layers["a"], 1.0, 3)
    record(layers["b"], 2.0, 1)
    metrics.update_state()
    values = results(metrics)
    assert set(values) == {f"routing/{s}" for s in STATISTICS}
    assert values["routing/dropped_fraction"] == pytest.approx(1.25)


def test_reset_and_no_tokens(layers):
    metrics = RoutingMetrics(layers)
    record(layers["a"], 1.0, 3)
    metrics.update_state()
    metrics.reset_state()
    assert set(results(metrics).values()) == {0.0}
