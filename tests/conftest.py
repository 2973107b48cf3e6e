"""Fixtures of every test. The backend is the one KERAS_BACKEND names."""

from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from tests.sparing import CASES_EVERYWHERE, few_of_many

# No backend computes anything here, or each is tested elsewhere with what these
# start in processes: `python -m tests` runs them on one.
ANY_BACKEND = (
    "architecture_test.py",
    "communication_test.py",
    "convert/huggingface_config_test.py",
    "convert/mixtral_config_test.py",
    "convert/read_tokenizer_json_test.py",
    "convert/t5x_msgpack_test.py",
    "convert/t5x_zarr_test.py",
    "convert/tokenizer_test.py",
    "convert/write_tokenizer_json_test.py",
    "data/apt_test.py",
    "data/batches_test.py",
    "data/checks_test.py",
    "data/corpus_test.py",
    "data/download_test.py",
    "data/files_test.py",
    "data/messages_test.py",
    "data/mixture_test.py",
    "data/package_descriptions_test.py",
    "data/packing_test.py",
    "data/ragged_test.py",
    "data/share_test.py",
    "data/spans_test.py",
    "data/tokens_test.py",
    "data/vocabulary_test.py",
    "faults/",
    "files/",
    "layers/hash_tables_test.py",
    "layers/validation_test.py",
    "models/backbone_arguments_test.py",
    "models/preset_arrays_test.py",
    "models/preset_budget_test.py",
    "models/preset_config_test.py",
    "models/preset_fields_test.py",
    "models/preset_folder_test.py",
    "models/switch_tokenizer_test.py",
    "models/switch_tokenizer_transformers_test.py",
    "models/weight_shapes_test.py",
    "ops/serving_test.py",
    "package_test.py",
    "parameters_test.py",
    "plots_test.py",
    "reference_test.py",
    "resume/joint_test.py",
    "resume/pieces_test.py",
    "resume/signals_test.py",
    "resume/store_test.py",
    "tasks/batches_test.py",
    "tasks/encoding_test.py",
    "tasks/few_shot_test.py",
    "tasks/from_file_test.py",
    "tasks/metrics_test.py",
    "tasks/packages_test.py",
    "tasks/splits_test.py",
    "tasks/squad_test.py",
    "tasks/table_test.py",
    "tasks/task_test.py",
    "tasks/wheels_test.py",
    "train/blanks_test.py",
    "train/collectives_test.py",
    "train/convert_test.py",
    "train/flags_test.py",
    "train/heap_test.py",
    "train/layer_speed_test.py",
    "train/mesh_test.py",
    "train/multilingual_plots_test.py",
    "train/multilingual_report_test.py",
    "train/multilingual_test.py",
    "train/profile_layer_test.py",
    "train/profile_names_test.py",
    "train/profile_spans_test.py",
    "train/results_test.py",
    "train/step_speed_test.py",
    "train/step_worker_test.py",
    "train/study_arms_test.py",
    "train/study_jobs_test.py",
    "train/study_plots_test.py",
    "train/study_report_test.py",
    "train/study_test.py",
    "train/study_worker_test.py",
    "train/upcycle_test.py",
    "train/workers_test.py",
    "versions_test.py",
)

# What depends on the machine code: its bits, its time. `python -m tests` has
# XLA compile all else for JAX without optimizing, in two thirds of the time.
OPTIMIZED = (
    "layers/switch_layer_isolation_test.py",
    "ops/expert_matmul_test.py",
    "ops/matmul_test.py",
    "ops/row_matmul_test.py",
    "train/profile_trace_test.py",
)


def pytest_collection_modifyitems(items):
    folder = Path(__file__).parent
    many = {start: {} for start in CASES_EVERYWHERE}
    for item in items:
        path = item.path.relative_to(folder).as_posix()
        if path.startswith(ANY_BACKEND):
            item.add_marker("any_backend")
        if path.startswith(OPTIMIZED):
            item.add_marker("optimized")
        parts = item.nodeid.split("::")
        name = "::".join([path, *parts[1:]])
        for start, found in many.items():
            if name.startswith(start):
                found[name] = item
    for start, found in many.items():
        kept = few_of_many(found, CASES_EVERYWHERE[start])
        for name, item in found.items():
            if name not in kept:
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
