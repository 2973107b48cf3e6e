import numpy as np
import pytest

from keras_switch.data import Pipeline, SpanCorruption, measure_throughput


def test_rates_count_real_tokens(encoded, monkeypatch):
    pipeline = Pipeline(
        encoded, SpanCorruption(500), 32, batch_size=4, packing="none"
    )
    ticks = iter(np.arange(0, 100, 2.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    measured = measure_throughput(pipeline, 3)
    counted = [pipeline.batch(step)[0] for step in (1, 2, 3)]
    tokens = sum(
        np.count_nonzero(x[f"{side}_padding_mask"])
        for x in counted
        for side in ("encoder", "decoder")
    )
    # The clock says 2 seconds, whatever is measured.
    assert measured.direct == tokens / 2
    assert 0 < measured.input_fill < 1 and 0 < measured.target_fill < 1


def test_a_full_stream_is_full_and_fast(encoded):
    pipeline = Pipeline(
        encoded, SpanCorruption(500), 64, batch_size=32, packing="stream"
    )
    measured = measure_throughput(pipeline, 10)
    assert measured.input_fill == measured.target_fill == 1
    # A generous floor: it is millions on one core of 2024.
    assert min(measured.direct, measured.prefetched) > 200_000


def test_bad_steps_are_refused(encoded):
    pipeline = Pipeline(encoded, SpanCorruption(500), 32)
    with pytest.raises(ValueError, match="steps must be an integer"):
        measure_throughput(pipeline, 0)
