import random

import pytest

from keras_switch.models.weight_shapes import weight_shapes
from tests.models import tiny


@pytest.mark.parametrize(
    "arguments",
    (
        {},
        {"tie_embedding_weights": False, "activation": "gated-gelu"},
        {"encoder_sparse_step": 0, "decoder_sparse_step": [0, 1]},
        {"key_value_dim": None, "num_decoder_layers": 1},
        {"router": "noisy_top_k", "decoder_router": "hash"},
        {"router": "soft", "decoder_router": "loss_free"},
        {"router": "random", "decoder_router": "base"},
        {"extra_feed_forward": True},
        {"num_shared_experts": 2, "activation": "gated-gelu"},
        {"extra_feed_forward": True, "router": "hash"},
    ),
)
def test_they_are_those_of_the_model(arguments):
    check(tiny.backbone(**arguments))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    "arguments",
    (
        {},
        {"key_value_dim": None, "num_key_value_heads": 1},
        {"expert_intermediate_dim": 5, "use_bias": True, "norm": "layer"},
        {"num_experts": None, "sparse_step": 0, "extra_feed_forward": True},
        {"expert_intermediate_dim": 5, "extra_feed_forward": True},
        {"expert_intermediate_dim": 5, "num_shared_experts": 3},
        {"num_shared_experts": 1, "use_bias": True},
        {"expert_blocks": 3, "use_bias": True},
    ),
)
def test_they_are_those_of_a_decoder_alone(family, arguments):
    check(tiny.causal_backbone(family, **arguments))


def check(backbone):
    wanted = {
        weight.path: tuple(weight.shape)
        for weight in backbone.trainable_weights
    }
    assert weight_shapes(backbone.get_config()) == wanted


def test_no_seed_is_drawn():
    """Or a model over a mesh would have others than one on a device."""
    arguments = tiny.backbone().get_config()
    state = random.getstate()
    weight_shapes(arguments)
    assert random.getstate() == state
