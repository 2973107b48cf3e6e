"""The arms differ from the dense twin in what they say, and in nothing else."""

import pytest

from keras_switch import parameters
from keras_switch_train import study_arms, study_worker

VOCABULARY = 300


def counts(name):
    settings = study_arms.settings(study_arms.ARMS[name])
    settings["backbone"]["num_decoder_layers"] = 2
    model = study_worker.make_model(settings, VOCABULARY)
    return parameters.count_parameters(model.backbone), settings["backbone"]


@pytest.fixture(scope="module")
def dense():
    return counts("dense")[0]


# Each kind of change once: a model takes a second to build.
@pytest.mark.parametrize(
    "name",
    [
        "switch",
        "experts_32",
        "half_router",
        "expert_choice",
        "router_top_2",
        "router_hash",
    ],
)
def test_a_token_costs_what_it_costs_in_the_dense_twin(name, dense):
    sparse, backbone = counts(name)
    # One router in the encoder, two in the decoder.
    routers = 3 * 2 * backbone["hidden_dim"] * backbone["num_experts"]
    if name == "router_hash":
        routers = 0
    if name == "expert_choice":  # an expert takes tokens * 1.25 / experts
        width = backbone["hidden_dim"] * backbone["intermediate_dim"]
        routers += 0.25 * 4 * width
    assert sparse["flops"] == dense["flops"] + routers
    assert sparse["total"] > 4 * dense["total"]


def test_the_bound_is_as_wide_as_all_experts():
    switch = study_arms.settings(study_arms.SWITCH)["backbone"]
    wide = study_arms.settings(study_arms.BOUND["wide"])["backbone"]
    all_experts = switch["num_experts"] * switch["intermediate_dim"]
    assert wide["intermediate_dim"] == all_experts


def test_settings_change_what_the_arm_says_alone():
    dense = study_arms.settings(study_arms.DENSE)
    assert dense == study_arms.COMMON
    switch = study_arms.settings(study_arms.SWITCH)
    for name in study_arms.ABLATIONS:
        changed = study_arms.settings(study_arms.ARMS[name])
        assert changed != switch, name
        for key in ("learning_rate", "batch_size", "input_length"):
            assert changed[key] == switch[key]
        assert study_arms.ARMS[name].paper, name


def test_groups_hold_every_arm_once():
    names = [n for group in study_arms.GROUPS.values() for n in group]
    assert sorted(names) == sorted(study_arms.ARMS)


def test_small_batches_read_as_many_rows():
    for name, arm in study_arms.SMALL_BATCHES.items():
        settings = study_arms.settings(arm)
        assert settings["batch_size"] * study_arms.steps_of(arm, 100) == 3200
        # Nothing else differs between those of a size but what the name says.
        assert f"batch_{settings['batch_size']}" in name
    assert study_arms.steps_of(study_arms.SWITCH, 100) == 100


def test_small_batches_reach_the_optimizer():
    def optimizer_of(name):
        settings = study_arms.settings(study_arms.ARMS[name])
        settings["backbone"] |= {"num_decoder_layers": 1, "num_experts": 2}
        return study_worker.make_model(settings, VOCABULARY).optimizer

    assert optimizer_of("batch_4").global_clipnorm == 1.0
    assert optimizer_of("batch_4_unclipped").global_clipnorm is None
    accumulated = optimizer_of("batch_4_accumulated")
    assert accumulated.gradient_accumulation_steps == 8
