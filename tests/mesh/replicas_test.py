"""`fit` under a `tf.distribute` strategy is `fit` without one."""

import keras
import numpy as np
import pytest

from tests.mesh import processes

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="strategies are TF's"
)


def test_two_replicas_compute_what_one_does(tmp_path):
    running = [
        processes.start(
            "tests.mesh.replicas",
            {"count": count, "folder": str(tmp_path)},
            backend="tensorflow",
        )
        for count in (1, 2)
    ]
    for process in running:
        processes.finish(process)
    found = []
    for count in (1, 2):
        with np.load(tmp_path / f"arrays-{count}.npz") as file:
            found.append(dict(file))
    assert found[0]["loss"] > 3
    for name, array in found[0].items():
        np.testing.assert_allclose(
            found[1][name], array, rtol=1e-4, atol=1e-4, err_msg=name
        )
