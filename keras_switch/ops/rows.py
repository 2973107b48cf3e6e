"""Rows of padding for a batch, in whatever library its arrays are of."""

import sys
from typing import Any

import keras
import numpy as np


def rows_of(batch: Any) -> int | None:
    """Rows of a batch; `None` where only a graph of `tf.data` knows.

    Args:
        batch: A nest of arrays.
    """
    return keras.tree.flatten(batch)[0].shape[0]


def pad_rows(batch: Any, multiple: int, ones: bool = False) -> Any:
    """Adds rows of zeros until their number is a multiple.

    Args:
        batch: A nest of arrays `[B, ...]`: NumPy's, a backend's, or tensors
            in a graph of `tf.data`.
        multiple: At least 1.
        ones: Return float32 ones in place of the values there are.

    Returns:
        The nest, of NumPy arrays or of TensorFlow's tensors.
    """

    def pad(array):
        tensorflow = sys.modules.get("tensorflow")
        if tensorflow is not None and tensorflow.is_tensor(array):
            return _pad_tensor(tensorflow, array, multiple, ones)
        array = keras.ops.convert_to_numpy(array)
        array = np.ones(array.shape, "float32") if ones else array
        missing = -len(array) % multiple
        return np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1))

    return keras.tree.map_structure(pad, batch)


def _pad_tensor(tf, array, multiple, ones):
    array = tf.ones_like(array, "float32") if ones else array
    missing = -tf.shape(array)[0] % multiple
    widths = [[0, missing]] + [[0, 0]] * (array.shape.rank - 1)
    return tf.pad(array, widths)
