import random

import pytest

from keras_switch.layers import SwitchRouter, TopKRouter
from keras_switch.models.backbone_arguments import (
    check_arguments,
    check_known,
    plain,
    sparse_stacks,
)
from tests.models import tiny

DENSE = {"encoder_sparse_step": 0, "decoder_sparse_step": 0}
WRONG = [
    ("router", "bogus"),
    ("decoder_router", "bogus"),
    ("router", SwitchRouter(num_experts=8)),
    ("dispatch", "zzz"),
    ("capacity_factor", -1),
    ("capacity_factor", None),
    ("eval_capacity_factor", 0.0),
    ("min_capacity", 0),
    ("capacity", 0),
    ("capacity", 1.5),
    ("group_size", 0),
    ("activation", "zzz"),
    ("expert_dropout", 3),
    ("num_experts", -1),
    ("num_experts", 0),
    ("extra_feed_forward", 2048),
    ("num_shared_experts", -1),
    ("expert_blocks", 0),
    ("num_shared_experts", True),
]


@pytest.mark.parametrize("stacks", [DENSE, {}], ids=["dense", "sparse"])
@pytest.mark.parametrize("name, value", WRONG)
def test_arguments_of_layers_are_refused_without_such_layers(
    name, value, stacks
):
    with pytest.raises(ValueError, match=name.removeprefix("decoder_")):
        tiny.backbone(**stacks, **{name: value})


def test_more_choices_than_experts():
    with pytest.raises(ValueError, match="k must be at most num_experts"):
        tiny.backbone(**DENSE, router=TopKRouter(k=9))


@pytest.mark.parametrize(
    "arguments",
    [
        {"capacity": 2, "dispatch": "dropless"},
        {"router": "expert_choice", "dispatch": "dropless"},
    ],
)
def test_arguments_that_exclude_each_other(arguments):
    with pytest.raises(ValueError, match="dropless"):
        tiny.backbone(**DENSE, **arguments)


def test_a_decoder_router_must_be_causal():
    with pytest.raises(ValueError, match="decoder_router must be causal"):
        tiny.backbone(router="expert_choice")
    with pytest.raises(ValueError, match="decoder_router must be causal"):
        tiny.backbone(decoder_router="expert_choice")
    tiny.backbone(router="expert_choice", decoder_sparse_step=0)


@pytest.mark.parametrize("router", ["switch", "top_k", TopKRouter(k=9)])
def test_a_dense_model_needs_no_number_of_experts(router):
    backbone = tiny.backbone(**DENSE, num_experts=None, router=router)
    assert backbone.get_config()["num_experts"] is None


def test_a_check_draws_no_random_number():
    config = tiny.backbone().get_config()
    state = random.getstate()
    check_arguments(config)
    with pytest.raises(ValueError, match="capacity_factor"):
        check_arguments({**config, "capacity_factor": 0})
    assert random.getstate() == state


def stacks(encoder, decoder=0, layers=12):
    return sparse_stacks(
        {
            "encoder_sparse_step": encoder,
            "decoder_sparse_step": decoder,
            "num_encoder_layers": layers,
            "num_decoder_layers": layers,
        }
    )


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (0, []),
        (1, list(range(12))),
        (2, [1, 3, 5, 7, 9, 11]),
        # Flaxformer's placement: i % n == n - 1.
        (4, [3, 7, 11]),
        (5, [4, 9]),
        (13, []),
        ([7, 2], [2, 7]),
        ((), []),
    ],
)
def test_which_layers_are_sparse(step, wanted):
    assert stacks(step) == (wanted, [])
    assert stacks(0, step) == ([], wanted)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (-1, "encoder_sparse_step must be an int at least 0"),
        (1.5, "encoder_sparse_step must be an int"),
        ([0, 12], "encoder_sparse_step must be .* below 12"),
        ([-1], "encoder_sparse_step must be an int at least 0"),
        ([3, 3], "encoder_sparse_step must name every sparse layer once"),
    ],
)
def test_sparse_steps_out_of_range(step, message):
    with pytest.raises(ValueError, match=message):
        stacks(step)


def test_an_unknown_argument_is_named():
    check_known("Thing", {"name": "a"}, ("name",))
    with pytest.raises(ValueError, match="Thing has no argument dropuot"):
        check_known("Thing", {"dropuot": 0.3, "name": "a"}, ("name",))


def test_plain_is_a_deep_copy():
    value = {"a": [1, (2, 3)]}
    copy = plain(value)
    assert copy == {"a": [1, [2, 3]]}
    copy["a"].append(4)
    assert value == {"a": [1, (2, 3)]}
