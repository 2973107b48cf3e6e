import pytest

from keras_switch.models.backbone_arguments import (
    check_known,
    plain,
    sparse_stacks,
)


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
