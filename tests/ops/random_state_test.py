import keras
import numpy as np

from keras_switch.ops.random_state import random_state, set_random_state


def test_a_dropout_without_a_seed_draws_the_same_again():
    layer = keras.layers.Dropout(0.5)
    x = np.ones((64,), "float32")
    seed = keras.ops.convert_to_numpy(layer.seed_generator.state)
    states = random_state()
    first = keras.ops.convert_to_numpy(layer(x, training=True))
    second = keras.ops.convert_to_numpy(layer(x, training=True))
    layer.seed_generator.state.assign(seed)
    set_random_state(states)
    again = keras.ops.convert_to_numpy(layer(x, training=True))
    assert (first != second).any()
    np.testing.assert_array_equal(again, first)


def test_only_torch_has_generators_of_its_own():
    torch = keras.backend.backend() == "torch"
    assert list(random_state())[:1] == (["cpu"] if torch else [])
    for state in random_state().values():
        assert state.dtype == "uint8"
