"""On a mesh of the one device there is; tests/mesh/ has one of eight."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import dtensor
from keras_switch.ops import layout as layout_ops
from tests.mesh import one_device

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="DTensor is TensorFlow's"
)


@pytest.fixture
def mesh():
    return keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])


def layout(mesh, *axes):
    return keras.distribution.TensorLayout(axes, mesh)


def test_an_array_comes_back_as_it_went(mesh, rng):
    array = rng.normal(size=(4, 6)).astype("float32")
    tensor = dtensor.placed(array, layout(mesh, "batch", "model"))
    assert dtensor.is_spread(tensor)
    np.testing.assert_array_equal(dtensor.fetched(tensor), array)
    moved = dtensor.relayout(tensor, layout(mesh, None, "batch"))
    np.testing.assert_array_equal(dtensor.fetched(moved), array)


def test_what_lies_nowhere_is_fetched_too():
    assert not dtensor.is_spread(ops.ones(3))
    np.testing.assert_array_equal(dtensor.fetched(ops.ones(3)), np.ones(3))


def test_a_variable_on_a_mesh_is_one_like_any_other(mesh, rng):
    array = rng.normal(size=(4, 6)).astype("float32")
    variable = keras.Variable(array, name="kernel")
    variable._layout = layout(mesh, "batch", None)
    dtensor.spread([variable], mesh)
    held = variable.value
    assert dtensor.is_spread(held) and variable.trainable
    dtensor.spread([variable], mesh)
    assert variable.value is held
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), array)
    variable.assign(array * 2)
    np.testing.assert_array_equal(variable.numpy(), array * 2)


def test_a_step_is_given_one_batch_after_the_other():
    calls, prepared = [], []

    def step(batch):
        calls.append(batch.shape)
        return {"sum": ops.sum(batch), "none": ops.zeros(())}

    with one_device.spread():
        distribution = keras.distribution.distribution()
        run = dtensor.function(
            step, prepared.append, distribution, eager=False, repeat=2
        )
        batches = iter([np.full((2, 3), i, "float32") for i in range(3)])
        assert run(batches)["sum"] == 6.0  # the second of two
        assert run(batches)["sum"] == 12.0
        with pytest.raises(StopIteration):
            run(batches)
    assert calls == [(2, 3)]  # compiled once
    assert len(prepared) == 1 and not prepared[0].any()  # the first batch


@pytest.mark.parametrize("optimizer", ("SGD", "RMSprop"))
def test_an_embedding_is_trained_by_any_optimizer(optimizer, rng):
    """One adds rows to a variable, the other squares them: on one device by
    Keras not their sum where an id comes twice, as here it must be."""
    import tensorflow as tf

    start = rng.normal(size=(4, 3)).astype("float32")
    ids = np.array([[1, 3], [1, 0]], "int32")
    wanted = keras.Variable(start, name="embeddings")
    chosen = getattr(keras.optimizers, optimizer)(0.1)
    # Of the sum of squares, one for each time an id is there.
    slope = 2 * start * np.array([[1], [2], [0], [1]], "float32")
    chosen.apply([tf.constant(slope)], [wanted])
    with one_device.spread() as distribution:
        embedding = keras.Variable(start, name="embeddings")
        chosen = getattr(keras.optimizers, optimizer)(0.1)
        dtensor.spread([embedding], distribution.device_mesh)
        chosen.build([embedding])
        dtensor.spread(chosen.variables, distribution.device_mesh)

        def step(ids):
            with tf.GradientTape() as tape:
                loss = ops.sum(ops.take(embedding, ids, axis=0) ** 2)
            slopes = tape.gradient(loss, [embedding.value])
            assert isinstance(slopes[0], tf.IndexedSlices)
            with layout_ops.compilable_gradients(chosen):
                chosen.apply(slopes, [embedding])
            assert "apply" not in vars(chosen)
            return loss

        run = dtensor.function(
            step, lambda batch: None, distribution, eager=False, repeat=1
        )
        run(iter([ids]))
    found, wanted = map(ops.convert_to_numpy, (embedding, wanted))
    assert np.all((wanted != start)[[0, 1, 3]])
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_mesh_that_would_read_too_early_is_refused(mesh, monkeypatch):
    monkeypatch.setattr(dtensor, "_reads_what_was_written", lambda mesh: False)
    with pytest.raises(RuntimeError, match="imported before DTensor"):
        dtensor.mesh_of(mesh)
