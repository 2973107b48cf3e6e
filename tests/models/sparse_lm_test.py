"""Both tasks have one way in and one way out."""

import inspect

import pytest

from keras_switch.models import SwitchCausalLM, SwitchSeq2SeqLM
from keras_switch.models.preset_model import PresetModel
from keras_switch.models.sparse_lm import SparseLM
from tests.models import tiny

BOTH = pytest.mark.parametrize("cls", [SwitchSeq2SeqLM, SwitchCausalLM])


@BOTH
def test_what_they_share_stands_before_keras_hubs(cls):
    names = ("compile", "compute_loss", "generate", "generate_step", "quantize")
    for name in names:
        assert getattr(cls, name) is getattr(SparseLM, name)
    assert cls.__mro__[1:3] == (PresetModel, SparseLM)
    assert inspect.signature(cls.compile).parameters["sampler"].default == (
        "greedy"
    )


@BOTH
def test_inputs_are_those_of_the_backbone(cls):
    make = {SwitchSeq2SeqLM: tiny.lm, SwitchCausalLM: tiny.causal_lm}[cls]
    lm = make()
    assert sorted(lm.input_names) == sorted(lm.backbone.input)
    assert lm.input_names[-1].endswith("padding_mask")
