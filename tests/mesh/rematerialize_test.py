"""Layers that are computed twice, in mixed_bfloat16 and on a mesh of 4."""

import keras
import numpy as np
import pytest

from tests.mesh import processes

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="over a mesh of JAX alone"
)


def test_training_has_the_bits_of_one_that_keeps(tmp_path, monkeypatch):
    """Where XLA rounds each bfloat16: what it does not round, as it joins
    operations, it joins in other ways where a layer is computed twice."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_allow_excess_precision=false", " ")
    arguments = {"folder": str(tmp_path)}
    processes.finish(processes.start("tests.mesh.rematerialize", arguments, 4))
    with np.load(tmp_path / "kept.npz") as kept:
        with np.load(tmp_path / "again.npz") as again:
            assert set(kept) == set(again) and len(kept) > 30
            assert kept["0 loss"] > 3
            assert kept["2 loss"] != kept["0 loss"]
            for name in kept:
                np.testing.assert_array_equal(
                    again[name], kept[name], err_msg=name
                )
