"""Each row times its own matrix: reference, compiled, bits."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import row_matmul

FORMS = {
    "fast": row_matmul.matmul_by_row,
    "plain": row_matmul.matmul_by_row_reference,
}


def data(rows=6, width=5, experts=4, out=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, width)).astype("float32")
    index = rng.integers(0, experts + 1, rows).astype("int32")
    kernel = rng.normal(size=(experts, width, out)).astype("float32")
    return x, index, kernel


def oracle(x, index, kernel):
    every = np.concatenate([kernel, np.zeros_like(kernel[:1])])
    return np.stack([row @ every[e] for row, e in zip(x, index, strict=True)])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [1, 6])
def test_equals_numpy(form, rows):
    x, index, kernel = data(rows)
    result = FORMS[form](*map(ops.convert_to_tensor, (x, index, kernel)))
    np.testing.assert_allclose(
        ops.convert_to_numpy(result), oracle(x, index, kernel), atol=1e-5
    )


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_graph(jit_compile):
    """Where Python cannot read the index."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("JAX compiles it always, torch reads the index")
    import tensorflow as tf

    graph = tf.function(row_matmul.matmul_by_row, jit_compile=jit_compile)
    x, index, kernel = data()
    np.testing.assert_allclose(
        graph(x, tf.constant(index), kernel).numpy(),
        oracle(x, index, kernel),
        atol=1e-5,
    )


def test_a_row_without_an_expert_is_zero():
    x, index, kernel = data()
    index[2] = 4
    x[2] = np.inf
    result = row_matmul.matmul_by_row(x, index, kernel)
    assert not ops.convert_to_numpy(result)[2].any()


def test_bits_do_not_depend_on_other_rows():
    x, index, kernel = data(rows=9, width=33, out=17)
    whole = ops.convert_to_numpy(row_matmul.matmul_by_row(x, index, kernel))
    for row in range(9):
        one = slice(row, row + 1)
        alone = row_matmul.matmul_by_row(x[one], index[one], kernel)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(alone)[0], whole[row]
        )


def test_serves():
    assert row_matmul.serves(8, 4)
    assert not row_matmul.serves(33, 8)
    assert row_matmul.serves(33, 64)
    assert not row_matmul.serves(keras.KerasTensor((None,)).shape[0], 8)
