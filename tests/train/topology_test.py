"""Programs for devices that are not there."""

import importlib.util

import keras
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch_train import abstract_step, flags, topology
from keras_switch_train.collectives import by_kind, collectives
from tests.train.flags_test import run

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="plan is JAX's"
)
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
SIZES = {
    "vocabulary_size": 128,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_experts": 8,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 0,
}


@pytest.fixture
def mesh_of_8():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    with flagsaver.flagsaver(mesh=["batch:4", "model:2"]):
        yield
    keras.distribution.set_distribution(None)


@pytest.mark.skipif(HAS_COMPILER, reason="libtpu is installed")
def test_it_says_what_is_missing(tmp_path):
    done = run(
        "plan",
        "--preset=switch_mini",
        "--mesh=batch:8",
        "--topology=v5e:2x4",
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert "pip install libtpu" in done.stderr.splitlines()[-1]


def test_a_mesh_of_another_size_is_refused(mesh_of_8, monkeypatch):
    monkeypatch.setattr(topology, "_devices", lambda name: [None] * 16)
    with pytest.raises(flags.UsageError, match=r"of --topology=v, 16; .* of 8"):
        topology.start("v")


def test_what_is_made_lies_on_its_devices(mesh_of_8, monkeypatch):
    import jax

    there = (jax.devices() * 8)[:8]
    monkeypatch.setattr(topology, "_devices", lambda name: there)
    made = []
    monkeypatch.setattr(
        jax.sharding, "Mesh", lambda *arguments: made.append(arguments)
    )
    topology.start("v")
    ((devices, names),) = made
    assert devices.shape == (4, 2) and devices.ravel().tolist() == there
    assert names == ("batch", "model")
    assert keras.distribution.distribution().device_mesh.backend_mesh is None


@pytest.mark.skipif(not HAS_COMPILER, reason="needs libtpu")
def test_a_step_is_compiled_for_tpus(mesh_of_8):
    topology.start("v5e:2x4")
    lowered = abstract_step.lower_step(SIZES, abstract_step.Batch(8, 16, 16))
    (program,) = abstract_step.programs(lowered)
    found = by_kind(collectives(program.as_text()))
    assert found["all-to-all"][0] == 4


@pytest.mark.skipif(not HAS_COMPILER, reason="needs libtpu")
def test_unknown_tpus_are_refused(mesh_of_8):
    with pytest.raises(flags.UsageError, match="such as v4:8x8x8"):
        topology.start("v99:2x4")
