import copy
import json
import warnings

import keras
import numpy as np
import pytest

from keras_switch.files import CheckpointError
from keras_switch.resume import identity, state
from tests.models import tiny
from tests.resume.training import make_model


def describe(model, data="data"):
    model.optimizer.build(model.trainable_variables)
    return identity.identity(model, state.variables_of(model), data)


def layers(*kinds):
    model = keras.Sequential([keras.Input((3,)), *kinds])
    model.compile("sgd", "mse")
    return model


def test_a_model_made_again_is_the_same():
    first = json.loads(json.dumps(describe(make_model())))
    second = describe(make_model())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identity.check("file", first, second)


def test_a_language_model_made_again_is_the_same():
    def make():
        lm = tiny.lm(num_encoder_layers=1, num_decoder_layers=1)
        lm.compile("adam")
        return describe(lm)

    identity.check("file", make(), make())


@pytest.mark.parametrize(
    "before, after, message",
    [
        (
            lambda: layers(keras.layers.Dense(2)),
            lambda: layers(keras.layers.Dense(3)),
            r"units was 2 and is 3; model\.variables.*kernel was "
            r'"float32 \[3, 2\]" and is "float32 \[3, 3\]"',
        ),
        (
            lambda: layers(keras.layers.Dense(2), keras.layers.Dropout(0.1)),
            lambda: layers(keras.layers.Dense(2), keras.layers.Dropout(0.2)),
            "rate was 0.1 and is 0.2",
        ),
        (
            lambda: layers(keras.layers.Dense(2)),
            lambda: layers(keras.layers.Dense(2, dtype="bfloat16")),
            'was "float32" and is "bfloat16"',
        ),
        (
            lambda: layers(keras.layers.Dense(2)),
            lambda: layers(keras.layers.Dense(2), keras.layers.ReLU()),
            "file: model must be as it was",
        ),
    ],
)
def test_another_model_is_refused(before, after, message):
    with pytest.raises(CheckpointError, match=message):
        identity.check("file", describe(before()), describe(after()))


def test_another_optimizer_is_refused():
    first = make_model()
    second = make_model()
    second.compile("sgd", "mse")
    with pytest.raises(CheckpointError, match="file: optimizer must be as"):
        identity.check("file", describe(first), describe(second))
    message = "learning_rate was 0.0[0-9]+ and is 0.5"
    with pytest.raises(CheckpointError, match=message):
        identity.check(
            "file", describe(make_model()), describe(make_model(rate=0.5))
        )


def test_other_data_is_refused():
    model = make_model()
    message = 'data was "one" and is "two"'
    with pytest.raises(CheckpointError, match=message):
        identity.check("file", describe(model, "one"), describe(model, "two"))


def test_another_backend_is_refused():
    first = describe(make_model())
    second = first | {"backend": "keras.src.backend.other.core"}
    with pytest.raises(CheckpointError, match="backend must be as it was"):
        identity.check("file", first, second)


def test_other_versions_are_a_warning():
    first = describe(make_model())
    second = copy.deepcopy(first)
    second["versions"]["keras"] = "99"
    with pytest.warns(UserWarning, match='keras was "3.* and is "99"'):
        identity.check("file", first, second)


def test_a_model_without_a_config_is_known_by_its_variables():
    class Own(keras.Model):
        def __init__(self, units):
            super().__init__()
            self.dense = keras.layers.Dense(units)

        def call(self, x):
            return self.dense(x)

    def make(units):
        model = Own(units)
        model(np.ones((1, 3)))
        model.compile("sgd", "mse")
        return describe(model)

    identity.check("file", make(2), make(2))
    with pytest.raises(CheckpointError, match="kernel was"):
        identity.check("file", make(2), make(3))


def test_many_changes_are_counted():
    before, after = ({f"a{i}": i + j for i in range(9)} for j in (0, 1))
    first = describe(make_model())
    for part, config in ((first, before),):
        part["model"] = json.dumps(config)
    second = first | {"model": json.dumps(after)}
    with pytest.raises(CheckpointError, match="a4 was 4 and is 5; and 4 more"):
        identity.check("file", first, second)
