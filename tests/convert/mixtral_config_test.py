import pytest

from keras_switch.convert import mixtral_config, rules
from keras_switch.files import CheckpointError
from keras_switch.layers import TopKRouter
from tests.models import tiny

# That of Mixtral 8x7B as it lies on the hub, by version 4 of `transformers`.
CONFIG = {
    "model_type": "mixtral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "output_router_logits": False,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.02,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


def read(**changes):
    return mixtral_config.read("config.json", {**CONFIG, **changes})


def test_mixtral_8x7b_has_its_46_7_billion_parameters():
    from keras_switch import count_parameters

    arguments = read().arguments
    counts = count_parameters(arguments)
    # Published: 46.7B in all, 12.9B for a token.
    assert counts["total"] == 46_702_792_704
    assert counts["active"] == 12_879_925_248
    assert arguments["rotary_max_wavelength"] == 1e6
    assert arguments["router"]["config"]["load_balancing_loss_weight"] == 0.02


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"num_experts_per_tok": 1}, "num_experts_per_tok"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": "8"}, "num_key_value_heads"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"rope_scaling": [1]}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 0}, None),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 0.5}},
            "rope_theta",
        ),
    ],
)
def test_what_it_may_not_say(changes, field):
    if field is None:
        assert read(**changes).arguments["rotary_max_wavelength"] == 1e6
        return
    with pytest.raises(CheckpointError) as caught:
        read(**changes)
    assert caught.value.field == field


def test_absent_heads_are_as_many_as_the_others():
    arguments = read(num_key_value_heads=None, head_dim=None).arguments
    assert arguments["num_key_value_heads"] is None
    assert arguments["key_value_dim"] is None


KEPT = TopKRouter(k=2, second_policy="all")


def test_a_model_that_is_one():
    backbone = tiny.causal_backbone(router=KEPT)
    configuration = mixtral_config.configuration_of(backbone)
    assert configuration.table is rules.MIXTRAL
    assert configuration.config["hidden_act"] == "silu"
    assert configuration.config["head_dim"] == 6
    again = mixtral_config.read("config.json", configuration.config).arguments
    made = backbone.get_config()
    different = {k for k in again if again[k] != made[k]}
    # They have no capacity: theirs is always dropless.
    assert different == {"dispatch", "router"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position": "relative"}, "position must be 'rotary'"),
        ({"norm": "layer"}, "norm must be 'rms'"),
        ({"use_bias": True}, "use_bias must be False"),
        ({"extra_feed_forward": True}, "extra_feed_forward must be False"),
        ({"num_shared_experts": 1}, "num_shared_experts must be 0"),
        ({"expert_blocks": 2}, "expert_blocks must be 1"),
        ({"tie_embedding_weights": True}, "tie_embedding_weights must be"),
        ({"sparse_step": 2}, r"Every layer must be sparse.*\[1\] of 2"),
        ({"activation": "relu"}, "activation of the experts must be one of"),
        ({"eval_capacity_factor": 2.0}, "eval_capacity_factor=2.0"),
        ({"router": "switch"}, "a TopKRouter of k above 1"),
        (
            {"router": TopKRouter(second_policy="threshold")},
            "keeps every choice",
        ),
    ],
)
def test_what_mixtral_is_not(arguments, message):
    backbone = tiny.causal_backbone(**{"router": KEPT, **arguments})
    with pytest.raises(ValueError, match=message):
        mixtral_config.configuration_of(backbone)
