"""Products of each expert: the oracle, gradients, bits."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import expert_matmul as module
from keras_switch.ops.compiled import compiled
from tests import bits, bridge

ROWS = (1, 8, 129)


@pytest.mark.parametrize("count", ROWS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_gradients_are_those_of_numpy(
    rng, gradients, count, dtype
):
    # Values that bfloat16 holds, so that only sums are rounded.
    x, w, dy = (
        np.round(rng.standard_normal(shape) * 8).astype("float32") / 8
        for shape in ((3, count, 6), (3, 6, 10), (3, count, 10))
    )

    def loss(x, w):
        y = module.expert_matmul(ops.cast(x, dtype), ops.cast(w, dtype))
        return ops.sum(ops.cast(y, "float32") * ops.convert_to_tensor(dy))

    y = ops.stop_gradient(
        module.expert_matmul(
            ops.convert_to_tensor(x, dtype), ops.convert_to_tensor(w, dtype)
        )
    )
    _, (dx, dw), _ = gradients(loss, [x, w])
    close = {"rtol": 1e-5, "atol": 1e-5}
    if dtype == "bfloat16":
        close = {"rtol": 1e-2, "atol": 1e-2}
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    y = bridge.numpy(ops.cast(y, "float32"))
    np.testing.assert_allclose(y, np.einsum("end,edf->enf", x, w), **close)
    np.testing.assert_allclose(dx, np.einsum("enf,edf->end", dy, w), **close)
    np.testing.assert_allclose(dw, np.einsum("end,enf->edf", x, dy), **close)


@pytest.mark.parametrize("width,units", [(32, 256), (768, 512), (1024, 64)])
def test_a_row_has_the_same_bits_however_many_there_are(rng, width, units):
    x = rng.standard_normal((2, 200, width)).astype("float32")
    kernel = rng.standard_normal((2, width, units)).astype("float32")
    fewest = module.fewest_rows(ops.convert_to_tensor(kernel))
    multiply = compiled()(
        functools.partial(module.expert_matmul, same_bits=True)
    )
    kernel = ops.convert_to_tensor(kernel)
    whole = bridge.numpy(multiply(ops.convert_to_tensor(x), kernel))
    for count in (fewest, fewest + 1, 129, 160):
        part = ops.convert_to_tensor(x[:, :count])
        some = bridge.numpy(multiply(part, kernel))
        bits.assert_same(some, whole[:, :count])


def test_a_poisoned_row_stays_alone(rng):
    x = rng.standard_normal((2, 9, 6)).astype("float32")
    x[1, 4] = np.nan
    kernel = rng.standard_normal((2, 6, 10)).astype("float32")
    x, kernel = map(ops.convert_to_tensor, (x, kernel))
    y = bridge.numpy(module.expert_matmul(x, kernel))
    rows = np.isnan(y).any(-1)
    assert rows[1, 4] and rows.sum() == 1
