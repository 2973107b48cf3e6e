import keras
import numpy as np

from keras_switch.ops.rows import pad_rows, rows_of


def test_rows_are_added_up_to_a_multiple():
    batch = {"a": np.ones((3, 2), "int32"), "b": (np.ones(3), np.ones(3))}
    padded = pad_rows(batch, 4)
    np.testing.assert_array_equal(padded["a"], [[1, 1]] * 3 + [[0, 0]])
    np.testing.assert_array_equal(padded["b"][1], [1, 1, 1, 0])
    assert padded["a"].dtype == np.int32
    assert rows_of(padded) == 4


def test_a_multiple_stays():
    padded = pad_rows(np.arange(4), 4)
    np.testing.assert_array_equal(padded, np.arange(4))


def test_tensors_of_the_backend():
    padded = pad_rows(keras.ops.ones((1, 2)), 2)
    np.testing.assert_array_equal(np.asarray(padded), [[1, 1], [0, 0]])


def test_ones_have_the_shape_and_are_weights():
    ones = pad_rows(np.zeros((3, 2), "int32"), 2, ones=True)
    np.testing.assert_array_equal(ones, [[1, 1]] * 3 + [[0, 0]])
    assert ones.dtype == np.float32


def test_in_a_graph_of_tf_data():
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(np.ones((5, 2), "int32"))
    data = data.batch(4).map(lambda x: (pad_rows(x, 4), pad_rows(x, 4, True)))
    (_, _), (last, ones) = data.as_numpy_iterator()
    np.testing.assert_array_equal(last, [[1, 1]] + [[0, 0]] * 3)
    np.testing.assert_array_equal(ones, last)
