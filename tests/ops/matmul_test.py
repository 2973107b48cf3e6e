"""A row's product is the same bits however many rows there are."""

import numpy as np
import pytest
from keras import ops

from keras_switch.ops.matmul import matmul_rows
from tests import bridge

SHAPES = [(1, 1), (1, 3), (2, 1), (3, 5), (1, 16), (4, 12), (0, 3), (2, 0)]


def example(rng, groups, tokens, width=6, units=4):
    x = rng.normal(size=(groups, tokens, width)).astype("float32")
    return x, rng.normal(size=(width, units)).astype("float32")


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, rng, gradients):
    x, kernel = example(rng, *shape)
    dy = rng.normal(size=(*shape, 4)).astype("float32")
    got = matmul_rows(*map(ops.convert_to_tensor, (x, kernel)))
    np.testing.assert_allclose(
        bridge.numpy(got), x @ kernel, rtol=1e-5, atol=1e-6
    )
    weight = ops.convert_to_tensor(dy)
    _, (dx, dkernel), _ = gradients(
        lambda x, kernel: ops.sum(matmul_rows(x, kernel) * weight),
        [x, kernel],
    )
    np.testing.assert_allclose(dx, dy @ kernel.T, rtol=1e-5, atol=1e-6)
    wanted = np.einsum("gsd,gsf->df", x, dy)
    np.testing.assert_allclose(dkernel, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("units", [4, 48, 128])
def test_a_row_alone_is_bit_equal(units, rng):
    x, kernel = example(rng, 4, 16, width=64, units=units)
    kernel = ops.convert_to_tensor(kernel)
    whole = bridge.numpy(matmul_rows(ops.convert_to_tensor(x), kernel))
    for groups, tokens in [(1, 1), (1, 2), (1, 7), (1, 16), (3, 1), (2, 5)]:
        part = ops.convert_to_tensor(x[:groups, :tokens])
        got = bridge.numpy(matmul_rows(part, kernel))
        np.testing.assert_array_equal(got, whole[:groups, :tokens])
