import keras
import numpy as np
import pytest

import keras_switch
from keras_switch.callbacks import routing_monitor
from keras_switch.layers.routing_stats import STATISTICS


def _model():
    inputs = keras.Input((None, 8))
    x = keras_switch.SwitchLayer(4, 16, name="first")(inputs)
    x = keras_switch.SwitchLayer(4, 16, router="top_k", name="second")(x)
    model = keras.Model(inputs, inputs + x)
    model.compile("sgd", "mse")
    return model


def _data(rows=6):
    x = np.random.default_rng(0).normal(size=(rows, 5, 8))
    return x.astype("float32"), np.zeros((rows, 5, 8), "float32")


def test_history_has_every_statistic_of_every_layer():
    history = _model().fit(
        *_data(),
        epochs=2,
        batch_size=2,
        validation_data=_data(4),
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor()],
    )
    for layer in ("first", "second"):
        for statistic in STATISTICS:
            for prefix in ("", "val_"):
                values = history.history[f"{prefix}{layer}/{statistic}"]
                assert len(values) == 2
                assert np.all(np.isfinite(values))
    assert 0 < history.history["first/router_confidence"][0] <= 1
    # Evaluation is dropless.
    assert history.history["val_first/dropped_fraction"] == [0.0, 0.0]


def test_the_mean_is_over_batches_not_the_last_one():
    model, seen = _model(), []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(
                np.array(
                    keras.ops.convert_to_numpy(
                        model.get_layer("first").routing_stats.value
                    )
                )
            )

    history = model.fit(
        *_data(),
        batch_size=4,
        shuffle=False,
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor(), Look()],
    )
    tokens = np.array([values[-1] for values in seen])
    assert tokens.tolist() == [20.0, 10.0]
    column = STATISTICS.index("router_entropy")
    entropy = np.array([values[column] for values in seen])
    np.testing.assert_allclose(
        history.history["first/router_entropy"][0],
        (entropy * tokens).sum() / tokens.sum(),
        rtol=1e-6,
    )


def test_the_progress_bar_sees_them(capsys):
    _model().fit(*_data(), verbose=2, callbacks=[keras_switch.RoutingMonitor()])
    assert "first/max_mean_load" in capsys.readouterr().out


def test_reading_seldom_still_reports():
    history = _model().fit(
        *_data(),
        batch_size=2,
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor(every=2)],
    )
    assert "second/router_z_loss" in history.history


@pytest.mark.parametrize("every, readings", [(1, 4), (2, 2), (3, 2), (9, 1)])
def test_every_counts_calls_not_batches(every, readings, monkeypatch):
    """With two steps in an execution Keras counts batches 1, 3, 5, 7."""
    seen = []
    monkeypatch.setattr(routing_monitor, "synchronize", seen.append)
    monitor = keras_switch.RoutingMonitor(every=every)
    monitor.set_model(_model())
    monitor.on_train_begin()
    for epoch in range(2):
        seen.clear()
        monitor.on_epoch_begin(epoch)
        for batch in (1, 3, 5, 7):
            monitor.on_train_batch_end(batch, {})
        logs = {}
        monitor.on_epoch_end(epoch, logs)
        assert len(seen) == readings
        assert "second/router_z_loss" in logs


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="Keras has no such steps there"
)
def test_every_with_several_steps_in_an_execution():
    model = _model()
    model.compile("sgd", "mse", steps_per_execution=2)
    history = model.fit(
        *_data(16),
        batch_size=2,
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor(every=2)],
    )
    assert "second/router_z_loss" in history.history


def test_validation_does_not_disturb_the_count(monkeypatch):
    seen = []
    monkeypatch.setattr(routing_monitor, "synchronize", seen.append)
    _model().fit(
        *_data(),
        batch_size=2,
        epochs=2,
        validation_data=_data(4),
        validation_batch_size=2,
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor(every=2)],
    )
    # Of three batches the first and the third, of two the first.
    assert len(seen) == 2 * (2 + 1)


def test_sequences_of_one_token_are_reported():
    inputs = keras.Input((1, 8))
    layer = keras_switch.SwitchLayer(4, 16, group_size=32, name="moe")
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(size=(32, 1, 8)).astype("float32")
    history = model.fit(
        x,
        x,
        batch_size=16,
        validation_data=(x, x),
        verbose=0,
        callbacks=[keras_switch.RoutingMonitor()],
    ).history
    for prefix in ("", "val_"):
        assert history[f"{prefix}moe/max_mean_load"][0] >= 1
        assert 0.25 <= history[f"{prefix}moe/router_confidence"][0] <= 1


def test_tensorboard_gets_every_statistic_of_every_layer(tmp_path):
    from tensorboard.backend.event_processing import event_file_loader

    _model().fit(
        *_data(),
        validation_data=_data(4),
        verbose=0,
        callbacks=[
            keras_switch.RoutingMonitor(),
            keras.callbacks.TensorBoard(str(tmp_path), write_graph=False),
        ],
    )
    for run in ("train", "validation"):
        tags = {
            value.tag
            for file in (tmp_path / run).glob("*tfevents*")
            for event in event_file_loader.EventFileLoader(str(file)).Load()
            for value in event.summary.value
        }
        for layer in ("first", "second"):
            for statistic in STATISTICS:
                assert f"epoch_{layer}/{statistic}" in tags


def test_a_model_without_switch_layers_is_refused():
    model = keras.Sequential([keras.layers.Dense(8)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="at least one SwitchLayer"):
        model.fit(
            *_data(), verbose=0, callbacks=[keras_switch.RoutingMonitor()]
        )


def test_every_must_be_positive():
    with pytest.raises(ValueError, match="every must be an int at least 1"):
        keras_switch.RoutingMonitor(every=0)


def test_layers_of_the_same_name_keep_their_paths():
    class Twice(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = keras_switch.SwitchLayer(2, 4, name="same")

        def call(self, x):
            return self.inner(x)

    inputs = keras.Input((None, 8))
    model = keras.Model(inputs, Twice(name="b")(Twice(name="a")(inputs)))
    names = routing_monitor.switch_layers(model)
    assert len(names) == 2 and all(name.endswith("same") for name in names)
