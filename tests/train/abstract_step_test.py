"""What a compiled step says of its memory."""

import keras
import pytest

from keras_switch import SwitchBackbone
from keras_switch_train import abstract_step, plan_report

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="plan is JAX's"
)
SIZES = {
    "vocabulary_size": 128,
    "num_encoder_layers": 3,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "hidden_dim": 64,
    "intermediate_dim": 64,
    "num_experts": 2,
    "dropout": 0.1,
    "encoder_sparse_step": 0,
    "decoder_sparse_step": 0,
}


@pytest.fixture
def mesh_of_1():
    mesh = keras.distribution.DeviceMesh((1,), ("batch",))
    layout_map = SwitchBackbone.get_layout_map(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout_map)
    )
    yield
    keras.distribution.set_distribution(None)


def temporary(**changes):
    batch = abstract_step.Batch(32, 128, 16)
    return plan_report.least({**SIZES, **changes}, batch)["temporary"]


def test_layers_that_are_computed_twice_need_less_memory(mesh_of_1):
    """In the better order: as XLA for CPUs computes, what is computed again
    is made early, and kept."""
    assert temporary(rematerialize=True) < 0.6 * temporary()


def test_options_of_an_older_jax(mesh_of_1):
    import jax

    asked = []

    class Lowered:
        def compile(self, options=None):
            asked.append(options)
            if "xla_cpu_scheduler_type" in (options or {}):
                raise jax.errors.JaxRuntimeError("No such compile option: x")
            return len(asked)

    assert abstract_step.programs(Lowered()) == [1, 3]
    assert asked[0] is None and False in asked[2].values()
