import keras
import numpy as np
import pytest

from keras_switch_train import callbacks


class Clock:
    """Stands in for the module `time`, in one module only."""

    def __init__(self, ticks):
        self.monotonic = lambda: next(ticks)


def make_model():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


def fit(*given, epochs=3):
    x, y = np.ones((8, 2)), np.ones((8, 1))
    return make_model().fit(
        x,
        y,
        batch_size=2,  # four steps an epoch
        epochs=epochs,
        validation_data=(x, y),
        callbacks=list(given),
        verbose=0,
    )


def test_stops_after_steps_and_evaluates_once_more():
    limit = callbacks.StopAfter(None, 6)
    history = fit(limit, epochs=100).history
    assert limit.done == 6
    assert len(history["val_loss"]) == 2
    assert limit.fraction == 1.0


def test_stops_after_minutes(monkeypatch):
    clock = iter(range(0, 10_000, 20))  # twenty seconds at every look
    monkeypatch.setattr(callbacks, "time", Clock(clock))
    limit = callbacks.StopAfter(1.5, None)
    fit(limit, epochs=100)
    assert limit.done == 5  # after 100 s


def test_no_limit_that_is_reached():
    limit = callbacks.StopAfter(60.0, 1000)
    assert len(fit(limit).history["loss"]) == 3
    assert 0.0 < limit.fraction < 0.1


class Resume(keras.callbacks.Callback):
    """Gives a callback its state where `ResumableCheckpoint` does."""

    def __init__(self, callback, state):
        super().__init__()
        self.resume = lambda: callback.set_state(state)

    def on_epoch_begin(self, epoch, logs=None):
        self.resume()


def test_the_limit_counts_what_came_before(monkeypatch):
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(callbacks, "time", Clock(clock))
    limit = callbacks.StopAfter(1.5, None)
    limit.on_train_begin()
    limit.done = 3
    state = limit.get_state()
    assert state == {"done": 3, "elapsed": 20}
    limit = callbacks.StopAfter(1.5, None)
    fit(limit, Resume(limit, state), epochs=1)
    assert limit.done == 3 + 4  # after another 80 s
    limit = callbacks.StopAfter(None, 5)
    fit(limit, Resume(limit, state), epochs=1)
    assert limit.done == 5


def test_the_report_counts_what_came_before(capsys):
    limit = callbacks.StopAfter(None, None)
    report = callbacks.Report(limit, 1.0)
    report.step = 3
    state = report.get_state()
    report.step = 0
    history = fit(limit, report, Resume(report, state), epochs=1).history
    assert history["step"] == [3 + 4]
    assert "step      7" in capsys.readouterr().out


def test_report_adds_step_and_rates_to_the_history(monkeypatch, capsys):
    clock = iter(np.arange(0, 1000, 0.5))
    monkeypatch.setattr(callbacks, "time", Clock(clock))
    limit = callbacks.StopAfter(None, None)
    report = callbacks.Report(limit, tokens_per_step=100)
    history = fit(report, epochs=2).history
    assert history["step"] == [4, 8]
    # Three steps from the end of the first to the end of the fourth.
    assert history["steps_per_second"] == pytest.approx([2.0, 2.0])
    assert history["tokens_per_second"] == pytest.approx([200.0, 200.0])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step      4 | held-out loss ")
    assert lines[0].endswith("| 2.00 step/s | 200 tokens/s")


def test_report_of_an_interval_of_one_step():
    limit = callbacks.StopAfter(None, 5)
    history = fit(limit, callbacks.Report(limit, 1.0)).history
    assert history["step"] == [4, 5]
    assert history["steps_per_second"][1] == 0.0


def test_report_means_over_sparse_layers(capsys):
    logs = {
        "loss": 2.0,
        "a/dropped_fraction": 0.1,
        "b/dropped_fraction": 0.3,
        "val_a/dropped_fraction": 0.9,
        "a/max_mean_load": 1.0,
        "b/max_mean_load": 2.0,
    }
    report = callbacks.Report(callbacks.StopAfter(None, None), 10.0)
    report.times = [0.0, 1.0]
    report.on_epoch_end(0, logs)
    line = capsys.readouterr().out
    assert "dropped 20.0% | max/mean load 1.50" in line
    assert "held-out" not in line


def test_files_of_a_run(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.importlib.util, "find_spec", lambda _: None)
        (history,) = callbacks.files(str(tmp_path))
    fit(history)
    lines = (tmp_path / "history.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,") and "val_loss" in lines[0]
    assert len(lines) == 4


def test_tensorboard_is_used_where_it_is_installed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.importlib.util, "find_spec", lambda _: True)
        _, tensorboard = callbacks.files(str(tmp_path))
    assert isinstance(tensorboard, keras.callbacks.TensorBoard)
