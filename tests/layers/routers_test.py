"""All routers by name."""

import keras
import pytest

import keras_switch
from keras_switch.layers.routers import ROUTERS, get_router

# None of these looks at later tokens in evaluation.
NOT_CAUSAL = {"expert_choice", "soft"}


@pytest.mark.parametrize("name", ROUTERS)
def test_by_name(name):
    router = get_router(name, 4, name="router")
    assert type(router) is ROUTERS[name]
    assert (router.num_experts, router.name) == (4, "router")
    assert router.causal is (name not in NOT_CAUSAL)
    exported = getattr(keras_switch, type(router).__name__)
    assert exported is getattr(keras_switch.layers, type(router).__name__)
    assert exported is type(router)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_config_makes_the_same_router(name):
    router = get_router(name, 4)
    config = keras.saving.serialize_keras_object(router)
    again = get_router(config, 4)
    assert type(again) is type(router)
    ours, theirs = router.get_config(), again.get_config()
    assert ours.pop("name") and theirs.pop("name")
    assert theirs == ours
    assert set(router.settings) <= set(ours)


@pytest.mark.parametrize("name", ROUTERS)
def test_its_trainable_weights_are_those_it_says(name):
    router = get_router(name, 4)
    router.build((None, None, 6))
    shapes = {w.name: tuple(w.shape) for w in router.trainable_weights}
    assert router.trainable_shapes(6) == shapes


@pytest.mark.parametrize("name", ROUTERS)
def test_an_argument_it_has_no_use_for_is_refused(name):
    unused = set(keras_switch.Router.settings) - set(ROUTERS[name].settings)
    for argument in unused:
        with pytest.raises(ValueError, match=f"has no argument {argument}"):
            ROUTERS[name](**{argument: 0.5})


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'switch', .*received router='best'"):
        get_router("best", 4)
    with pytest.raises(ValueError, match="'switch', .*received 7"):
        get_router(7, 4)
