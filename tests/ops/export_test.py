import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.ops import expert_loop, row_matmul
from keras_switch.ops.export import (
    check_onnx,
    check_saved_model,
    endpoint_options,
    is_exporting,
)
from keras_switch.ops.indexing import has_values

ON_TORCH = keras.backend.backend() == "torch"
needs_torch = pytest.mark.skipif(not ON_TORCH, reason="torch writes ONNX")


def test_only_torch_is_refused():
    if not ON_TORCH:
        return check_saved_model()
    with pytest.raises(RuntimeError, match="SavedModel needs"):
        check_saved_model()


def test_only_jax_has_options():
    assert bool(endpoint_options()) == (keras.backend.backend() == "jax")


def test_only_torch_writes_onnx(monkeypatch):
    if not ON_TORCH:
        with pytest.raises(RuntimeError, match="ONNX needs the torch backend"):
            check_onnx()
        return
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras-switch\[onnx\]"):
        check_onnx()


def exported(function, *arrays):
    """A function of tensors as a program that runs on other values."""
    import torch

    class Program(torch.nn.Module):
        def forward(self, *tensors):
            assert is_exporting() and not has_values(tensors[0])
            return function(*tensors)

    assert not is_exporting()
    examples = tuple(torch.tensor(array) for array in arrays)
    with torch.no_grad():
        program = torch.export.export(Program(), examples, strict=False)
    return program.module()


@needs_torch
def test_a_program_cuts_rows_as_its_sizes_say(rng):
    rows = rng.normal(size=(6, 3)).astype("float32")
    kernel = rng.normal(size=(2, 3, 3)).astype("float32")

    def loop(rows, sizes, kernel):
        return expert_loop.loop_over_experts(ops.matmul, rows, sizes, [kernel])

    program = exported(loop, rows, np.array([2, 3], "int32"), kernel)
    for sizes in ([2, 3], [0, 6], [5, 0], [0, 0]):
        arguments = [rows, np.array(sizes, "int32"), kernel]
        tensors = [ops.convert_to_tensor(a) for a in arguments]
        np.testing.assert_allclose(
            ops.convert_to_numpy(program(*tensors)),
            ops.convert_to_numpy(loop(*tensors)),
            rtol=1e-5,
            atol=1e-6,
        )


@needs_torch
def test_a_program_multiplies_each_row_by_its_own_matrix(rng):
    rows = rng.normal(size=(4, 3)).astype("float32")
    kernel = rng.normal(size=(2, 3, 5)).astype("float32")
    index = np.array([1, 0, 2, 1], "int32")  # 2: of no expert
    program = exported(row_matmul.matmul_by_row, rows, index, kernel)
    for other in (index, index[::-1].copy(), index * 0):
        tensors = [ops.convert_to_tensor(a) for a in (rows, other, kernel)]
        np.testing.assert_allclose(
            ops.convert_to_numpy(program(*tensors)),
            ops.convert_to_numpy(row_matmul.matmul_by_row_reference(*tensors)),
            rtol=1e-5,
            atol=1e-6,
        )
