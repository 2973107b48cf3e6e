"""What a compiled step says of its memory."""

import keras
import pytest

from keras_switch import SwitchBackbone
from keras_switch_train import abstract_step

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="plan is JAX's"
)
SIZES = {
    "vocabulary_size": 128,
    "num_encoder_layers": 4,
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
    program = abstract_step.compile_step({**SIZES, **changes}, batch)
    return abstract_step.costs(program)["temporary"]


def test_layers_that_are_computed_twice_need_less_memory(mesh_of_1):
    """In the order that needs least: as XLA for CPUs computes, what is
    computed again is made early, and kept."""
    assert temporary(rematerialize=True) < 0.5 * temporary()


def test_options_of_an_older_jax(mesh_of_1):
    import jax

    asked = []

    class Lowered:
        def compile(self, options):
            asked.append(options)
            if "xla_cpu_scheduler_type" in options:
                raise jax.errors.JaxRuntimeError("No such compile option: x")
            return "compiled"

    assert abstract_step._compiled(Lowered()) == "compiled"
    assert len(asked) == 2
