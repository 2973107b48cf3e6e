"""Fixtures of every test. The backend is the one KERAS_BACKEND names."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

# No backend computes anything here: `python -m tests` runs these on one.
ANY_BACKEND = (
    "architecture_test.py",
    "convert/huggingface_config_test.py",
    "convert/read_tokenizer_json_test.py",
    "convert/t5x_msgpack_test.py",
    "convert/t5x_zarr_test.py",
    "convert/write_tokenizer_json_test.py",
    "data/batches_test.py",
    "data/checks_test.py",
    "data/corpus_test.py",
    "data/download_test.py",
    "data/files_test.py",
    "data/packing_test.py",
    "data/ragged_test.py",
    "data/spans_test.py",
    "data/tokens_test.py",
    "data/vocabulary_test.py",
    "faults/",
    "files/",
    "models/preset_arrays_test.py",
    "models/preset_budget_test.py",
    "models/preset_config_test.py",
    "models/preset_fields_test.py",
    "models/preset_folder_test.py",
    "package_test.py",
    "plots_test.py",
    "reference_test.py",
    "resume/signals_test.py",
    "resume/store_test.py",
    "train/blanks_test.py",
    "train/heap_test.py",
    "versions_test.py",
)


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(folder).as_posix()
        if path.startswith(ANY_BACKEND):
            item.add_marker("any_backend")


@pytest.fixture(autouse=True)
def same_start():
    """The same seeds and the float32 policy before every test."""
    keras.utils.set_random_seed(7)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """Thousands of small shapes are compiled on JAX: forget them by file."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def gradients():
    """`gradients(fn, arrays, variables=())`.

    Returns `(value, d/d arrays, d/d variables)` of the scalar `fn(*tensors)`
    in NumPy, by the backend's automatic derivative. A gradient that does not
    exist is zeros.
    """
    backend = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    differentiate = backend[keras.backend.backend()]

    def run(fn, arrays, variables=()):
        arrays = [np.asarray(a, "float32") for a in arrays]
        value, grads = differentiate(fn, arrays, list(variables))
        like = arrays + [np.zeros(v.shape) for v in variables]
        grads = [
            np.zeros_like(a) if g is None else ops.convert_to_numpy(g)
            for a, g in zip(like, grads, strict=True)
        ]
        count = len(arrays)
        return float(value), grads[:count], grads[count:]

    return run


def _jax(fn, arrays, variables):
    import jax

    def pure(arrays, values):
        state = zip(variables, values, strict=True)
        with keras.StatelessScope(list(state), collect_losses=True):
            return fn(*arrays)

    arrays = [ops.convert_to_tensor(a) for a in arrays]
    values = [v.value for v in variables]
    value, grads = jax.value_and_grad(pure, argnums=(0, 1))(arrays, values)
    return value, [*grads[0], *grads[1]]


def _tensorflow(fn, arrays, variables):
    import tensorflow as tf

    arrays = [tf.convert_to_tensor(a) for a in arrays]
    values = [v.value for v in variables]
    with tf.GradientTape() as tape:
        tape.watch(arrays)
        value = fn(*arrays)
    return value, tape.gradient(value, [*arrays, *values])


def _torch(fn, arrays, variables):
    import torch

    arrays = [torch.tensor(a, requires_grad=True) for a in arrays]
    values = [v.value for v in variables]
    value = fn(*arrays)
    grads = torch.autograd.grad(value, [*arrays, *values], allow_unused=True)
    return value.detach(), grads
