"""How large a model would be, told without building it."""

import keras
import pytest

from keras_switch import parameters
from keras_switch.files import CheckpointError
from keras_switch.models import preset_budget
from keras_switch.models.preset_budget import check_size, weight_count
from keras_switch.models.preset_config import defaults_of
from keras_switch.models.switch_backbone import SwitchBackbone
from tests.models import tiny

ARGUMENTS = {**defaults_of(SwitchBackbone), **tiny.ARGUMENTS}
SHAPES = [
    {},
    {"tie_embedding_weights": False},
    {"activation": "gated-gelu", "encoder_sparse_step": 1},
    {"num_experts": None, "encoder_sparse_step": 0, "decoder_sparse_step": 0},
    {"num_heads": 4, "key_value_dim": None, "num_decoder_layers": 3},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_count_is_that_of_the_built_model(shape):
    arguments = {**ARGUMENTS, **shape}
    built = tiny.backbone(**shape)
    wanted = sum(map(_size, built.trainable_variables))
    assert weight_count(arguments) == wanted


def _size(variable):
    return int(keras.ops.size(variable))


def test_the_count_agrees_with_the_other_one():
    total = parameters.count_parameters(tiny.ARGUMENTS)["total"]
    assert weight_count(ARGUMENTS) == total


def test_a_budget_is_kept():
    count = weight_count(ARGUMENTS)
    for dtype, each in (
        ("float32", 4),
        ("mixed_bfloat16", 4),
        ("bfloat16", 2),
        ("int8_from_float32", 1),
    ):
        arguments = {**tiny.ARGUMENTS, "dtype": dtype}
        check_size("a", arguments, each * count)
        with pytest.raises(CheckpointError, match="max_bytes=") as caught:
            check_size("a", arguments, each * count - 1)
        assert caught.value.field == "size"


def test_without_a_budget_it_is_the_free_memory(monkeypatch):
    assert 2**26 < preset_budget.free_bytes() < 2**46
    monkeypatch.setattr(preset_budget, "free_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match="at most 1,000 bytes"):
        check_size("a", tiny.ARGUMENTS)


def test_files_must_hold_half_as_many_numbers():
    count = weight_count(ARGUMENTS)
    check_size("a", tiny.ARGUMENTS, found=count // 2)
    with pytest.raises(CheckpointError, match="at least .* numbers"):
        check_size("a", tiny.ARGUMENTS, found=count // 2 - 1)


def test_arguments_of_no_model_are_refused_first():
    with pytest.raises(ValueError, match="num_heads must be"):
        check_size("a", {**tiny.ARGUMENTS, "num_heads": "two"})
