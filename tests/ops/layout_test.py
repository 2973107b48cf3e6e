import keras
import numpy as np
import pytest

from keras_switch.ops import layout
from tests.mesh import one_device


def mesh(shape=(4, 2), names=("batch", "model")):
    devices = [f"cpu:{i}" for i in range(int(np.prod(shape)))]
    return keras.distribution.DeviceMesh(shape, names, devices)


def test_without_a_distribution_there_is_nothing_to_do():
    x = keras.ops.ones((3, 2))
    assert layout.lay_out(x, "anything") is x
    assert layout.data_shards() == 1
    assert not layout.is_distributed()


def test_parts_of_an_axis():
    assert layout.split(mesh(), None) == 1
    assert layout.split(mesh(), "batch") == 4
    assert layout.split(mesh(), ("batch", "model")) == 8


@pytest.mark.parametrize(
    "shape, wanted", (((8, 4), None), ((6, 4), 0), ((8, 3), 1), ((None, 2), 0))
)
def test_the_axis_that_cannot_be_split(shape, wanted):
    axes = keras.distribution.TensorLayout(("batch", "model"), mesh())
    assert layout.indivisible_axis(shape, axes) == wanted


def test_torch_lays_out_nothing():
    if keras.backend.backend() != "torch":
        layout.check_backend()
    else:
        with pytest.raises(RuntimeError, match="need the JAX or the Tensor"):
            layout.check_backend()


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no layouts"
)
def test_a_block_may_be_left_out():
    with one_device.spread() as distribution:
        with layout.undistributed():
            assert not layout.is_distributed()
        assert keras.distribution.distribution() is distribution
