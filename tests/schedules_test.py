import keras
import numpy as np
import pytest

from keras_switch.schedules import InverseSquareRoot


def rates(schedule, steps):
    return [float(keras.ops.convert_to_numpy(schedule(s))) for s in steps]


def test_flat_then_inverse_square_root():
    schedule = InverseSquareRoot(base=2.0, warmup_steps=100)
    np.testing.assert_allclose(
        rates(schedule, [0, 1, 100, 400, 10_000]),
        [0.2, 0.2, 0.2, 0.1, 0.02],
        rtol=1e-6,
    )


def test_defaults_are_those_of_t5():
    np.testing.assert_allclose(
        rates(InverseSquareRoot(), [0, 40_000]), [0.01, 0.005], rtol=1e-6
    )


def test_linear_warmup_starts_at_zero_and_meets_the_curve():
    schedule = InverseSquareRoot(1.0, warmup_steps=4, linear_warmup=True)
    np.testing.assert_allclose(
        rates(schedule, [0, 1, 2, 4, 16]), [0, 0.125, 0.25, 0.5, 0.25]
    )


def test_step_may_be_an_integer_tensor():
    step = keras.ops.convert_to_tensor(400, dtype="int32")
    assert rates(InverseSquareRoot(1.0, 100), [step]) == pytest.approx([0.05])


def test_config_round_trip():
    schedule = InverseSquareRoot(0.5, warmup_steps=7, linear_warmup=True)
    config = keras.saving.serialize_keras_object(schedule)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, InverseSquareRoot)
    assert again.get_config() == schedule.get_config()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"base": float("inf")}, "base must be a number above 0"),
        ({"base": 0.0}, "base must be a number above 0; received base=0.0."),
        ({"warmup_steps": 0}, "received warmup_steps=0."),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        InverseSquareRoot(**arguments)
