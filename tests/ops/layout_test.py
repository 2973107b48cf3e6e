import types

import keras
import numpy as np
import pytest

from keras_switch.ops import layout
from tests.mesh import one_device
from tests.models import tiny


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


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strategies are TF's"
)
@pytest.mark.parametrize("workers", ([], ["a:1", "b:1"]))
def test_several_workers_of_a_strategy_are_refused(workers, monkeypatch):
    import tensorflow as tf

    class Strategy(tf.distribute.MultiWorkerMirroredStrategy):
        """Without waiting for the others."""

        def __init__(self):
            spec = tf.train.ClusterSpec({"worker": workers} if workers else {})
            self.spec = types.SimpleNamespace(cluster_spec=lambda: spec)

        @property
        def cluster_resolver(self):
            return self.spec

    lm = tiny.lm()
    lm.compile()
    monkeypatch.setattr(lm, "_distribute_strategy", Strategy())
    if not workers:
        layout.check_strategy(lm)
        return
    x = tiny.inputs(np.random.default_rng(0))
    with pytest.raises(RuntimeError, match="received MultiWorkerMirrored"):
        lm.fit(x, x["decoder_token_ids"])
