"""Traces of tiny functions by the profiler of the tests' backend."""

import keras
import pytest
from keras import ops

from keras_switch_train import measure, profile_trace

BACKEND = keras.backend.backend()


def test_a_product_is_what_a_dense_layer_does():
    layer = keras.layers.Dense(512, activation="relu")
    layer.build((512, 512))
    run = measure.evaluation(layer, ops.ones((512, 512)))
    found = profile_trace.profile(run, 2, BACKEND)
    assert min(found["ms"], found["traced ms"], found["cpu ms"]) > 0
    operations = found["operations"]
    times = [wall for _, _, _, wall, *_ in operations]
    assert times == sorted(times, reverse=True) and times[-1] >= 0
    products = [row for row in operations if row[0] == "product"]
    # How long it takes is not asked for: another process may have the core.
    assert sum(row[3] for row in products) > 0
    # torch shows the product inside of `matmul`, too.
    assert 1 <= products[0][5] == int(products[0][5])
    # It may be more: a thread is in its region when the call has returned.
    assert sum(times) >= 0.99 * found["traced ms"]
    assert [row[1] for row in operations if row[0] == "runtime"] == [
        "between operations"
    ]


def test_a_trace_without_operations_is_refused():
    with pytest.raises(RuntimeError, match=f"{BACKEND} must show operations"):
        profile_trace.profile(lambda: None, 1, BACKEND)


def test_an_unknown_backend_is_refused():
    calls = []
    with pytest.raises(ValueError, match="jax, tensorflow, torch; .*'mxnet'"):
        profile_trace.profile(lambda: calls.append(1), 1, "mxnet")
    assert not calls
