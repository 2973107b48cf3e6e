"""Recording a value from inside a call, traced or not."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import state
from keras_switch.ops.state import record
from tests import bridge


class Counter(keras.layers.Layer):
    """Keeps the sum of its last input."""

    def build(self, _):
        self.last = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, x):
        record(self.last, ops.sum(x))
        return x


def test_eager():
    layer = Counter()
    layer(np.ones((2, 3), "float32"))
    assert float(bridge.numpy(layer.last)) == 6


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_compiled_model(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("Keras on torch compiles with a C++ compiler at run time")
    layer = Counter()
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=jit_compile)
    model.fit(np.ones((4, 3)), np.ones((4, 1)), batch_size=4, verbose=0)
    assert float(bridge.numpy(layer.last)) == 12


def test_a_plain_jit_leaves_no_tracer():
    """JAX only: the value would outlive its trace."""
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX has tracers")
    import jax

    layer = Counter()
    layer.build((2, 3))
    jax.jit(layer)(np.ones((2, 3), "float32"))
    assert float(bridge.numpy(layer.last)) == 0


# === Several processes, in one ===


def test_a_layout_reads_no_more_than_its_devices_need():
    if keras.backend.backend() != "jax":
        pytest.skip("layouts of several processes are JAX's")
    import jax

    class Rows:
        shape, read = (4, 2), []

        def __getitem__(self, index):
            self.read.append(index)
            return np.ones((4, 2), "float16")[index]

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "x")
    layout = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    variable = keras.Variable(np.zeros((4, 2)), dtype="float32")
    variable._layout = layout
    state.assign(variable, Rows())
    np.testing.assert_array_equal(variable, np.ones((4, 2)))
    assert len(Rows.read) == 1 and len(Rows.read[0]) == 2


@pytest.mark.parametrize("is_writer", [True, False])
def test_what_every_process_has_the_first_saves(is_writer, monkeypatch):
    monkeypatch.setattr(state, "is_writer", lambda: is_writer)
    table = np.arange(6, dtype="float32").reshape(2, 3)
    variables = {
        "a": keras.Variable(table),
        "b": keras.Variable(7, trainable=False),
    }
    values = {name: variable.value for name, variable in variables.items()}
    found = state.own_pieces(values)
    assert list(found) == (["a", "b"] if is_writer else [])
    if is_writer:
        np.testing.assert_array_equal(found["a"][0, 0], table)
        assert found["b"][()] == 7


def as_one_of_two(monkeypatch, is_writer, numbers):
    """A process that sees all variables as spread; what it fetches."""
    gathered, numbers = [], iter(numbers)

    def from_writer(number):
        assert not is_writer or number == next(numbers)
        return number if is_writer else next(numbers)

    def fetched(value):
        gathered.append(float(np.asarray(value)[0]))
        return np.asarray(value)

    monkeypatch.setattr(state, "process_count", lambda: 2)
    monkeypatch.setattr(state, "is_writer", lambda: is_writer)
    monkeypatch.setattr(state, "_is_spread", lambda value: value.ndim == 1)
    monkeypatch.setattr(state, "from_writer", from_writer)
    monkeypatch.setattr(state, "fetched", fetched)
    return gathered


@pytest.fixture
def variables():
    if keras.backend.backend() != "jax":
        pytest.skip("several processes are JAX's")
    # The second is whole in each process.
    shapes = [(2,), (2, 2), (2,), (2,)]
    return [keras.Variable(np.full(s, i)) for i, s in enumerate(shapes)]


def test_the_first_process_gathers_what_it_reads(variables, monkeypatch):
    # The third of those that are spread, the first, and the end.
    gathered = as_one_of_two(monkeypatch, True, [3, 1, 0])
    with pytest.raises(OSError, match="full"):
        with state.on_host(variables):
            assert gathered == []
            for index in (3, 3, 1, 0):
                found = keras.ops.convert_to_numpy(variables[index])
                np.testing.assert_array_equal(found, np.full_like(found, index))
            assert gathered == [3.0, 0.0]
            raise OSError("full")


def test_the_others_gather_what_the_first_reads(variables, monkeypatch):
    gathered = as_one_of_two(monkeypatch, False, [3, 1, 0])
    with state.on_host(variables):
        assert gathered == []
    assert gathered == [3.0, 0.0]
