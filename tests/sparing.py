"""Cases that, of many alike, only some are run on every backend."""

from collections.abc import Collection, Iterable

import pytest


def cases(names: Iterable[str], everywhere: Collection[str]) -> list:
    """Parameters of a test or fixture, from names.

    Args:
        names: Of all cases.
        everywhere: Those that every backend runs; the others run on one.
    """
    once = pytest.mark.any_backend
    return [
        pytest.param(name, marks=() if name in everywhere else once)
        for name in names
    ]


# Of these tests so many cases, evenly spaced, run on every backend, and the
# others on one: their cases differ by what no backend sees, or each is slow to
# compile and like the next. By file and name.
CASES_EVERYWHERE = {
    "analysis_test.py::": 2,
    "convert/huggingface_test.py::test_same_outputs": 4,
    "convert/huggingface_test.py::test_same_sequences": 5,
    "convert/t5x_test.py::": 2,
    "convert/upcycle_test.py::": 3,
    "layers/invariants_test.py::test_invariant": 9,
    "layers/policies_test.py::test_a_quantized_layer": 2,
    "layers/router_dtypes_test.py::": 6,
    "layers/soft_router_test.py::test_layer_equals_oracle": 6,
    "layers/switch_layer_model_test.py::test_dtype_policies": 6,
    "layers/switch_layer_model_test.py::test_fit_lowers_the_loss": 3,
    "layers/switch_layer_model_test.py::test_unknown_batch_and_length": 3,
    "layers/switch_layer_oracle_test.py::test_short_sequences": 12,
    "layers/switch_layer_test.py::test_one_expert_is_the_dense": 8,
    "layers/switch_layer_test.py::test_statistics_are_written": 1,
    "layers/transformer_layer_test.py::test_a_model_of_ones_own": 1,
    "models/decoding_test.py::test_contrastive_search": 0,
    "models/decoding_test.py::test_logits_that_are_not_finite": 1,
    "models/generation_test.py::test_a_row_alone": 1,
    "models/generation_test.py::test_padded_rows_and_lengths": 1,
    "models/keras_hub_compliance_test.py::KerasHubComplianceTest": 4,
    "models/routers_test.py::test_cached_decoding": 1,
    "models/routers_test.py::test_it_trains": 1,
    "models/saving_test.py::test_a_preset_loads_on_the_other": 0,
    "models/saving_test.py::test_a_quantized_task_loads": 0,
    "models/switch_causal_backbone_test.py::": 12,
    "models/switch_causal_lm_test.py::test_every_sampler": 1,
    "models/switch_causal_lm_test.py::test_int8_is_close": 0,
    "models/switch_causal_lm_test.py::test_layers_are_told": 0,
    "models/switch_seq_2_seq_lm_test.py::test_every_sampler": 2,
    "train/mixtral_speed_test.py::test_the_command": 0,
}


def few_of_many(names: Iterable[str], kept: int) -> set[str]:
    """Those of many names, in their order, that are `kept`, evenly spaced."""
    names = list(names)
    if not kept:
        return set()
    step = max(1, -(-len(names) // kept))
    return set(names[::step])
