import numpy as np
import pytest

from keras_switch.tasks import Example, Shape, Splits, Task, encode
from keras_switch.tasks.encoding import (
    prompt_arrays,
    row_length,
    training_arrays,
)
from tests.models import tiny


def load(cache_dir=None):
    return Splits([], [], [])


TASK = Task("a", load, "the {input}")
LABELS = Task("b", load, metrics=("accuracy",), classification=True)
EXAMPLES = [
    Example("brown dog", "fox"),
    Example("quick brown fox jumped over the lazy dog", "small lazy dogs"),
]


@pytest.fixture
def tokenizer():
    return tiny.preprocessor().tokenizer


def test_long_texts_are_cut_and_counted(tokenizer):
    encoded = encode(TASK, EXAMPLES, tokenizer, Shape(60, 60))
    ids = [list(ids) for ids in tokenizer(["the brown dog", "fox"])]
    assert encoded.inputs[0].tolist() == ids[0] + [1]
    assert encoded.targets[0].tolist() == ids[1] + [1]
    assert (encoded.cut_inputs, encoded.cut_targets) == (0, 0)
    long_input, long_target = (len(x[1]) for x in encoded[:2])
    shape = Shape(long_input - 1, long_target - 1)
    cut = encode(TASK, EXAMPLES, tokenizer, shape)
    assert (cut.cut_inputs, cut.cut_targets) == (1, 1)
    assert len(cut.inputs[1]) == long_input - 1 and cut.inputs[1][-1] == 1
    # It must not be learnt that an answer ends where it was cut.
    assert cut.targets[1].tolist() == encoded.targets[1][:-1].tolist()


def test_a_label_that_is_too_long_is_refused(tokenizer):
    with pytest.raises(ValueError, match="answer_length .*'small lazy dogs'"):
        encode(LABELS, EXAMPLES, tokenizer, Shape(60, 4))
    for shape in (Shape(1, 9), Shape(9, 1), Shape(9.5, 9)):
        with pytest.raises(ValueError, match="_length must be an integer"):
            encode(TASK, EXAMPLES, tokenizer, shape)


def test_arrays_are_those_of_the_preprocessor(tokenizer):
    encoded = encode(TASK, EXAMPLES, tokenizer, Shape(40, 30))
    x, y, weight = training_arrays(*encoded[:2], Shape(40, 30))
    packer = tiny.preprocessor(
        encoder_sequence_length=40, decoder_sequence_length=30
    )
    texts = {
        "encoder_text": [TASK.prompt(e.input) for e in EXAMPLES],
        "decoder_text": [e.target for e in EXAMPLES],
    }
    wanted_x, wanted_y, wanted_weight = packer(texts)
    np.testing.assert_array_equal(y, wanted_y)
    np.testing.assert_array_equal(weight, wanted_weight)
    np.testing.assert_array_equal(x["decoder_padding_mask"], weight)
    for name in ("encoder_token_ids", "encoder_padding_mask"):
        np.testing.assert_array_equal(x[name], wanted_x[name])
    # Behind the last target the packer's row goes on with `</s>`.
    ids = np.asarray(wanted_x["decoder_token_ids"]) * weight
    np.testing.assert_array_equal(x["decoder_token_ids"], ids)


def test_a_decoder_alone_learns_targets_behind_the_prompt():
    shape = Shape(5, 3, decoder_only=True)
    x, y, weight = training_arrays(
        [np.array([7, 8]), np.array([9])],
        [np.array([5, 1]), np.array([6, 4, 1])],
        shape,
    )
    assert row_length(shape) == 8
    assert y.tolist() == [[7, 8, 5, 1, 0, 0, 0, 0], [9, 6, 4, 1, 0, 0, 0, 0]]
    assert x["token_ids"].tolist() == [
        [0, 7, 8, 5, 0, 0, 0, 0],
        [0, 9, 6, 4, 0, 0, 0, 0],
    ]
    assert x["padding_mask"].sum(axis=1).tolist() == [4, 4]
    assert weight.tolist() == [
        [0, 0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0, 0],
    ]
    prompts = prompt_arrays([np.array([7, 8]), np.array([9])], shape)
    assert prompts["token_ids"].tolist() == [[0, 7, 8, 0, 0], [0, 9, 0, 0, 0]]
    assert prompts["padding_mask"].sum(axis=1).tolist() == [3, 2]


def test_the_longest_prompt_fits(tokenizer):
    shape = Shape(9, 4, decoder_only=True)
    encoded = encode(TASK, EXAMPLES, tokenizer, shape)
    assert len(encoded.inputs[1]) == 8 and 1 not in encoded.inputs[1]
    assert prompt_arrays(encoded.inputs, shape)["padding_mask"][1].all()
