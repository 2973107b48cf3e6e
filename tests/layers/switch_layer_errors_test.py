"""Bad input: one clear error that names the argument and what came."""

import keras
import numpy as np
import pytest

import keras_switch

GOOD = {"num_experts": 4, "intermediate_dim": 5}


@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, True, "4", None])
@pytest.mark.parametrize(
    "name",
    [
        "num_experts",
        "intermediate_dim",
        "min_capacity",
        "capacity",
        "group_size",
    ],
)
def test_sizes_are_positive_integers(name, value):
    if name in ("capacity", "group_size") and value is None:
        pytest.skip("None is a default with a meaning")
    with pytest.raises((ValueError, TypeError), match=name) as error:
        keras_switch.SwitchLayer(**{**GOOD, name: value})
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    "value", [0, 0.0, -1.0, float("nan"), float("inf"), "2", True]
)
@pytest.mark.parametrize("name", ["capacity_factor", "eval_capacity_factor"])
def test_capacity_factors_are_positive(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        keras_switch.SwitchLayer(**GOOD, **{name: value})


def test_capacity_factor_is_not_none():
    with pytest.raises((ValueError, TypeError), match="capacity_factor"):
        keras_switch.SwitchLayer(**GOOD, capacity_factor=None)


@pytest.mark.parametrize(
    "name,value",
    [
        ("router", "swich"),
        ("router", None),
        ("router", 3),
        ("router", keras.layers.Dense),
        ("router", keras.layers.Dense(3)),
        ("dispatch", "scatter"),
        ("dispatch", None),
        ("activation", "relux"),
        ("activation", "gated-relux"),
        ("activation", "gated-"),
        ("dropout", 1.5),
        ("dropout", -0.1),
        ("expert_dropout", 1.5),
        ("expert_dropout", -0.1),
        ("init_scale", 0.0),
        ("init_scale", -1.0),
    ],
)
def test_refused_arguments_are_named(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        keras_switch.SwitchLayer(**GOOD, **{name: value})


def test_unknown_router_lists_the_known_ones():
    with pytest.raises(ValueError, match="swich") as error:
        keras_switch.SwitchLayer(**GOOD, router="swich")
    for known in ("switch", "top_k", "expert_choice"):
        assert known in str(error.value)


def test_more_choices_than_experts():
    """Also where the router hears of num_experts from the layer only."""
    with pytest.raises(
        ValueError, match="k must be at most num_experts; received k=9"
    ):
        keras_switch.SwitchLayer(
            8, 5, router=keras_switch.TopKRouter(k=9)
        ).build((None, None, 6))


def test_router_of_another_number_of_experts():
    with pytest.raises(ValueError, match="num_experts"):
        keras_switch.SwitchLayer(
            8, 5, router=keras_switch.SwitchRouter(num_experts=4)
        ).build((None, None, 6))


@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("shape", [(4,), (4, 6), (2, 4, 6, 6)])
def test_wrong_rank(shape, built):
    layer = keras_switch.SwitchLayer(**GOOD)
    if built:
        layer(np.zeros((2, 4, 6), "float32"))
    with pytest.raises(ValueError, match="rank 3.*Reshape") as error:
        layer(np.zeros(shape, "float32"))
    assert str(shape) in str(error.value)


def test_wrong_hidden_size_after_build():
    layer = keras_switch.SwitchLayer(**GOOD)
    layer(np.zeros((2, 4, 6), "float32"))
    with pytest.raises(ValueError, match="7"):
        layer(np.zeros((2, 4, 7), "float32"))


def test_unknown_hidden_size():
    with pytest.raises(ValueError):
        keras_switch.SwitchLayer(**GOOD).build((None, None, None))


@pytest.mark.parametrize(
    "shape", [(2,), (4,), (2, 3), (3, 4), (4, 2), (2, 4, 1), (2, 1), (1, 4)]
)
def test_mask_of_the_wrong_shape(shape):
    layer = keras_switch.SwitchLayer(**GOOD)
    x = np.zeros((2, 4, 6), "float32")
    with pytest.raises(ValueError, match="padding_mask") as error:
        layer(x, padding_mask=np.ones(shape, "int32"))
    assert str(shape) in str(error.value)


def test_mask_of_the_wrong_shape_in_a_graph():
    layer = keras_switch.SwitchLayer(**GOOD)
    x = keras.Input((4, 6))
    with pytest.raises(ValueError, match="padding_mask"):
        layer(x, padding_mask=keras.Input((5,), dtype="int32"))
    with pytest.raises(ValueError, match="padding_mask"):
        layer(x, padding_mask=keras.Input((4, 6), dtype="int32"))


def test_experts_that_choose_are_never_dropless():
    with pytest.raises(ValueError, match="dispatch.*'dropless'"):
        keras_switch.SwitchLayer(
            **GOOD, router="expert_choice", dispatch="dropless"
        )


def test_a_capacity_needs_a_dispatch_that_has_one():
    with pytest.raises(ValueError, match="capacity must be None.*'dropless'"):
        keras_switch.SwitchLayer(**GOOD, capacity=2, dispatch="dropless")


def test_a_built_router_is_refused():
    router = keras_switch.SwitchRouter(num_experts=4)
    router.build((None, None, 6))
    with pytest.raises(ValueError, match="router must not be built"):
        keras_switch.SwitchLayer(**GOOD, router=router)


def test_a_router_is_never_shared():
    """The layer clones by config; two layers never share weights."""
    router = keras_switch.SwitchRouter(z_loss_weight=0.5)
    layers = [keras_switch.SwitchLayer(**GOOD, router=router) for _ in "ab"]
    for layer in layers:
        layer.build((None, None, 6))
        assert layer.router is not router
        assert layer.router.z_loss_weight == 0.5
    assert layers[0].router.kernel is not layers[1].router.kernel
    assert not router.built
