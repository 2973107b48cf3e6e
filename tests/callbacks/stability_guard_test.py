import warnings

import keras
import numpy as np
import pytest

from keras_switch import ResumableCheckpoint, StabilityGuard
from keras_switch.callbacks.stability_guard import first_non_finite_layer
from tests.resume.training import Numbers, digest, make_model

STEPS = 8


class Poisoned(Numbers):
    """Some batches are not numbers."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def __getitem__(self, step):
        x, y = super().__getitem__(step)
        return (x * np.nan if step in self.bad else x), y


def fit(guard, data, *callbacks, model=None, steps=STEPS):
    model = model or make_model(compiled=True)
    dataset = guard.checkpoint.dataset() if guard.checkpoint else data.dataset()
    model.fit(
        dataset,
        steps_per_epoch=steps,
        callbacks=[guard, *callbacks],
        verbose=0,
    )
    return model


def test_a_guarded_training_has_the_bits_of_one_that_is_not():
    plain = make_model(compiled=True)
    plain.fit(Numbers().dataset(), steps_per_epoch=STEPS, verbose=0)
    guarded = fit(StabilityGuard(), Numbers())
    for a, b in zip(plain.get_weights(), guarded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_bad_step_leaves_no_trace():
    guard = StabilityGuard("skip", every=1)
    with pytest.warns(UserWarning, match="in step 4: .* of 4 of 4 variables"):
        model = fit(guard, Poisoned({3}))
    assert np.isfinite(
        np.concatenate([w.ravel() for w in model.get_weights()])
    ).all()
    assert int(model.optimizer.iterations) == STEPS - 1
    found = keras.ops.convert_to_numpy(model.optimizer.found_non_finite)
    assert found.tolist() == [1, 0, 4, 1, 1, 1, 1]


def test_a_bad_step_stops_training():
    model = make_model(compiled=True)
    with pytest.raises(FloatingPointError, match="in step 4: .*no trace"):
        fit(StabilityGuard(every=1), Poisoned({3}), model=model)
    assert int(model.optimizer.iterations) == 3


def test_a_bad_last_step_is_seen_too():
    with pytest.raises(FloatingPointError, match="in step 8"):
        fit(StabilityGuard(), Poisoned({STEPS - 1}))


def test_looking_seldom_sees_the_same_later():
    model = make_model(compiled=True)
    with pytest.raises(FloatingPointError, match="in step 4:"):
        fit(StabilityGuard(every=3), Poisoned({3}), model=model)
    assert int(model.optimizer.iterations) == 6 - 1


def test_too_many_in_a_row_stop_training():
    with pytest.warns(UserWarning, match="in step 4"):
        with pytest.raises(FloatingPointError, match="in step 5"):
            fit(StabilityGuard("skip", most=1, every=1), Poisoned({3, 4}))
    with pytest.warns(UserWarning, match="in step 6"):
        fit(StabilityGuard("skip", most=1, every=1), Poisoned({3, 5}))


def test_roll_back_sets_the_model_to_the_checkpoint(tmp_path):
    data = Poisoned({5})
    checkpoint = ResumableCheckpoint(tmp_path, data, save_every=2)
    guard = StabilityGuard("roll_back", checkpoint, every=1)
    with pytest.warns(UserWarning, match="in step 6"):
        model = fit(guard, data, checkpoint)
    # Back at step 4 and two more; a busy writer may have left it out, and have
    # taken step 5 or none after step 2.
    assert int(model.optimizer.iterations) in (4, 6, 7)


def test_the_first_layer_is_named(tmp_path):
    class Broken(keras.layers.Layer):
        def call(self, x):
            return keras.ops.sqrt(x - 1e6)

    data = Numbers()
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(2, name="fine"),
            Broken(name="broken"),
            keras.layers.Dense(1, name="after"),
        ]
    )
    assert "broken" in first_non_finite_layer(model, data[0][0])
    model.compile("sgd", "mse")
    checkpoint = ResumableCheckpoint(tmp_path, data)
    with pytest.raises(
        FloatingPointError, match="first layer without numbers is .*broken"
    ):
        fit(StabilityGuard("stop", checkpoint), data, checkpoint, model=model)
    assert "call" not in vars(model.layers[0])


def test_no_layer_is_named_where_all_are_finite():
    model = make_model(compiled=True)
    before = digest(model)
    assert first_non_finite_layer(model, Numbers()[0][0]) is None
    assert digest(model) == before


def test_guarded_training_is_resumed(tmp_path):
    data = Poisoned({2})

    def train(folder, steps):
        checkpoint = ResumableCheckpoint(folder, data, save_every=100)
        guard = StabilityGuard("skip", checkpoint)
        model = make_model(compiled=True)
        model.fit(
            checkpoint.dataset(),
            steps_per_epoch=4,
            epochs=steps // 4,
            callbacks=[guard, checkpoint],
            verbose=0,
        )
        return digest(model), guard.get_state()

    with pytest.warns(UserWarning, match="in step 3"):
        whole = train(tmp_path / "whole", 8)
    with pytest.warns(UserWarning, match="in step 3"):
        train(tmp_path / "ended", 4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert train(tmp_path / "ended", 8) == whole
    assert not [w for w in caught if "in step" in str(w.message)]
    assert whole[1] == {"step": 8, "bad": 1}


def test_another_fit_with_another_guard():
    model = make_model(compiled=True)
    fit(StabilityGuard(), Numbers(), model=model)
    count = len(model.optimizer.variables)
    assert "apply" not in vars(model.optimizer)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match="in step 2:"):
            fit(StabilityGuard(), Poisoned({1}), model=model)
    assert len(model.optimizer.variables) == count


def test_a_loss_scale_is_refused():
    model = make_model(compiled=True)
    sgd = keras.optimizers.SGD()
    model.compile(keras.optimizers.LossScaleOptimizer(sgd), "mse")
    with pytest.raises(ValueError, match="without a loss scale"):
        fit(StabilityGuard(), Numbers(), model=model)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"action": "panic"}, "action must be one of 'stop', 'skip', 'roll_"),
        ({"action": "roll_back"}, "checkpoint must be given"),
        ({"most": -1}, "most must be an int at least 0"),
        ({"every": 0}, "every must be an int at least 1"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        StabilityGuard(**arguments)


def test_a_guarded_model_is_saved_with_its_optimizer(tmp_path):
    model = fit(StabilityGuard(), Numbers())
    path = tmp_path / "model.keras"
    model.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = keras.models.load_model(path)
    assert int(again.optimizer.iterations) == STEPS
    model.optimizer.iterations.assign(0)
    model.load_weights(path)
    assert int(model.optimizer.iterations) == STEPS


def test_a_weight_without_a_gradient_is_no_bad_step():
    class Unused(keras.layers.Layer):
        def build(self, shape):
            self.unused = self.add_weight(shape=(2,))

        def call(self, x):
            return x

    model = keras.Sequential([Unused(), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    model.build(x.shape)
    with warnings.catch_warnings():
        # Keras itself says that there is no gradient.
        warnings.filterwarnings("ignore", message="Gradients do not exist")
        model.fit(x, y, callbacks=[StabilityGuard()], verbose=0)
    found = keras.ops.convert_to_numpy(model.optimizer.found_non_finite)
    assert found.tolist() == [0, 0, 1, 0, 0, 0]
