import warnings

import keras
import numpy as np
import pytest

import keras_switch
from keras_switch import RoutingAlarm


def collapsed(experts=4, capacity_factor=1.25):
    """All tokens want the first expert: the others' logits are far below."""
    inputs = keras.Input((None, 8))
    layer = keras_switch.SwitchLayer(
        experts, 16, capacity_factor=capacity_factor, name="moe"
    )
    model = keras.Model(inputs, layer(inputs))
    model.compile("sgd", "mse")
    model.optimizer.learning_rate = 0.0
    kernel = np.zeros((8, experts), "float32")
    kernel[:, 0] = 10.0
    (router,) = [v for v in layer.router.weights if v.shape == kernel.shape]
    router.assign(kernel)
    return model


def fit(model, alarm, steps=6):
    x = np.ones((2 * steps, 20, 8), "float32")
    model.fit(x, x, batch_size=2, verbose=0, callbacks=[alarm])


def test_a_collapsed_layer_is_named_once_with_what_to_try():
    alarm = RoutingAlarm(patience=2, every=1)
    with pytest.warns(UserWarning) as caught:
        fit(collapsed(), alarm)
    texts = [str(w.message) for w in caught if "readings" in str(w.message)]
    assert len(texts) == 3
    assert texts[0].startswith(
        "moe/max_mean_load is 4.00, above 2.00 in the last 2 readings, at "
        "step 2. Most tokens go to few experts"
    )
    assert "load_balancing_loss_weight" in texts[0]
    assert texts[1].startswith("moe/dead_expert_fraction is 0.75, above 0.50")
    assert "or fewer experts" in texts[1]
    # Of 20 tokens 7 have room: 1.25 * 20 / 4.
    assert texts[2].startswith("moe/dropped_fraction is 0.65, above 0.30")
    assert "capacity_factor" in texts[2]


def test_experts_without_a_token_by_chance_are_no_alarm():
    model = collapsed()
    (layer,) = [la for la in model.layers if la.name == "moe"]
    for variable in layer.router.weights:
        if variable.shape == (8, 4):
            variable.assign(np.eye(8, 4, dtype="float32"))
    x = np.zeros((12, 1, 8), "float32")
    x[::2, 0, 0] = x[1::2, 0, 1] = 9.0  # of 2 tokens at most 2 experts live
    alarm = RoutingAlarm(1.0, 0.4, 1.0, patience=1, every=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, x, batch_size=2, verbose=0, callbacks=[alarm])
    assert not [w for w in caught if "readings" in str(w.message)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"patience": 7},  # of six readings
        {"every": 4, "patience": 2},
        {
            "max_mean_load": 1.0,
            "dead_expert_fraction": 1.0,
            "dropped_fraction": 1.0,
            "patience": 1,
        },
    ],
)
def test_a_limit_that_is_not_passed_long_enough_is_no_alarm(arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(collapsed(), RoutingAlarm(**{"every": 1, **arguments}))
    assert not [w for w in caught if "readings" in str(w.message)]


def test_a_layer_that_was_well_again_gives_another_alarm():
    alarm = RoutingAlarm(patience=2)
    alarm._step, alarm._in_a_row = 0, {}
    with pytest.warns(UserWarning) as caught:
        for value in (3.0, 3.0, 3.0, 1.0, 3.0, 3.0):
            alarm._judge("moe", "max_mean_load", value, 2.0)
    assert len(caught) == 2


def test_statistics_that_are_not_numbers_are_an_alarm():
    alarm = RoutingAlarm(patience=1)
    alarm._step, alarm._in_a_row = 0, {}
    with pytest.warns(UserWarning, match="is nan"):
        alarm._judge("moe", "dropped_fraction", float("nan"), 0.5)


def test_its_state_comes_back():
    before, after = RoutingAlarm(), RoutingAlarm()
    before._step, before._in_a_row = 3, {"moe/max_mean_load": 2}
    after.set_state(before.get_state())
    assert after.get_state() == {"step": 3, "in_a_row": before._in_a_row}


def test_a_model_without_switch_layers_is_refused():
    model = keras.Sequential([keras.layers.Dense(8)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="at least one SwitchLayer"):
        fit(model, RoutingAlarm())


@pytest.mark.parametrize(
    "name, value",
    [
        ("max_mean_load", 0.0),
        ("max_mean_load", 1.5),
        ("dead_expert_fraction", 0.0),
        ("dropped_fraction", float("nan")),
        ("patience", 0),
        ("every", 0.5),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        RoutingAlarm(**{name: value})
