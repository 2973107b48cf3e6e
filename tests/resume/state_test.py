import keras
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.resume import state
from keras_switch.resume.pieces import Pieces
from tests.resume.training import make_model


class Noisy(keras.metrics.Mean):
    """A metric that draws random numbers."""

    def __init__(self):
        super().__init__(name="noisy")
        self.generator = keras.random.SeedGenerator(5)


class Nested(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.generators = [keras.random.SeedGenerator(i) for i in range(2)]
        self.inner = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.inner(x)


def built(**arguments):
    model = make_model(**arguments)
    model.optimizer.build(model.trainable_variables)
    return model


def copies(model, variables):
    arrays = state.copy_to_host(model, variables)
    return {name: np.asarray(array) for name, array in arrays.items()}


def test_every_seed_generator_is_part_of_the_state():
    inputs = keras.Input((3,))
    x = keras.layers.GaussianNoise(0.1)(Nested()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile("adam", "mse", metrics=[Noisy()])
    model.loss = keras.losses.MeanSquaredError()
    model.loss.generator = keras.random.SeedGenerator(6)
    model.optimizer.generator = keras.random.SeedGenerator(7)
    model.optimizer.build(model.trainable_variables)
    variables = state.variables_of(model)
    seeds = [name for name in variables if "seed_generator_state" in name]
    # Two and a dropout in Nested, the noise; the metric, loss and optimizer.
    parts = [state.part_of(name) for name in seeds]
    assert parts.count("model") == 4
    assert parts.count("seeds") == 3
    assert len({id(v) for v in variables.values()}) == len(variables)


def test_names_do_not_depend_on_what_else_was_made():
    names = list(state.variables_of(built()))
    assert names == list(state.variables_of(built()))
    assert names[0] == "model/0000/sequential/dense/kernel"
    assert state.stable("dense_12/kernel") == "dense/kernel"
    assert state.stable("adam/dense_3_kernel_momentum") == (
        "adam/dense_kernel_momentum"
    )


def test_copies_are_not_changed_by_later_steps():
    model = built()
    variables = state.variables_of(model)
    arrays = state.copy_to_host(model, variables)
    before = {name: np.array(array) for name, array in arrays.items()}
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 1)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])
    kernel = "model/0000/sequential/dense/kernel"
    now = keras.ops.convert_to_numpy(variables[kernel])
    assert np.abs(now - np.asarray(arrays[kernel])).max() > 0


def test_arrays_go_back_bit_by_bit():
    model = built()
    variables = state.variables_of(model)
    arrays, before = (
        copy(model, variables) for copy in (state.copy_to_host, copies)
    )
    model.train_on_batch(np.ones((2, 3)), np.ones((2, 1)))
    parts = (state.MODEL, state.OPTIMIZER)
    state.assign("file", variables, arrays, parts)
    again = copies(model, variables)
    for name, array in before.items():
        if state.part_of(name) in parts:
            assert again[name].tobytes() == array.tobytes()


def test_half_precision_goes_back_bit_by_bit():
    variable = keras.Variable(np.array([1.0, 0.1]), dtype="bfloat16")
    model = built()
    (array,) = copies(model, {"model/0": variable}).values()
    as_read = array.view("uint16")
    variable.assign([0.0, 0.0])
    state.assign("file", {"model/0": variable}, {"model/0": as_read}, ["model"])
    back = keras.ops.convert_to_numpy(variable.value)
    assert back.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.pop("model/1"), r"without \['model/1'\] and with \[\]"),
        (lambda a: a.update({"model/9": a["model/0"]}), "with .'model/9'"),
        (lambda a: a.update({"model/1": np.ones(3)}), "shape must be .2,."),
        (
            lambda a: a.update({"model/1": np.ones(2, "int16")}),
            "dtype must be float32; received int16",
        ),
    ],
)
def test_other_arrays_are_refused_before_any_is_assigned(change, message):
    variables = {
        f"model/{i}": keras.Variable(np.zeros(2), dtype="float32")
        for i in range(2)
    }
    arrays = {name: np.ones(2, "float32") for name in variables}
    change(arrays)
    with pytest.raises(CheckpointError, match=message):
        state.assign("file", variables, arrays, ["model"])
    for variable in variables.values():
        assert not keras.ops.convert_to_numpy(variable).any()


def test_non_finite_arrays_are_found():
    import ml_dtypes

    bad = np.array([1.0, np.inf], "float32")
    arrays = {
        "model/a": bad,
        "model/b": np.ones(2),
        "model/c": np.array([np.nan], ml_dtypes.bfloat16),
        "model/d": np.array([1], "int32"),
        "model/e": np.array([1], ml_dtypes.int4),
        "optimizer/a": bad * np.nan,
        "metrics/a": bad,
        "callbacks/a": bad,
    }
    arrays = {name: Pieces.whole(array) for name, array in arrays.items()}
    assert state.non_finite(arrays) == ["model/a", "model/c", "optimizer/a"]
