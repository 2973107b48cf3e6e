import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.models.generation_inputs import (
    check_arrays,
    check_strings,
    check_texts,
)
from tests.models import tiny

SMALL = {
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 0,
    "decoder_sparse_step": 0,
}


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(1)
    return tiny.lm(**SMALL)


@pytest.fixture(scope="module")
def text_lm():
    keras.utils.set_random_seed(1)
    return tiny.lm(preprocessor=tiny.preprocessor(), **SMALL)


# --- Strings ------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, wanted",
    [
        ("a", (["a"], True)),
        (b"caf\xc3\xa9", (["café"], True)),
        (np.str_("a"), (["a"], True)),
        (np.array("a"), (["a"], True)),
        (np.array(["a", "b"]), (["a", "b"], False)),
        (np.array([b"a", b"b"], object), (["a", "b"], False)),
        (("a", b"b"), (["a", "b"], False)),
        ([], ([], False)),
        ([""], ([""], False)),
    ],
)
def test_strings(value, wanted):
    assert check_strings("x", value) == wanted


def test_strings_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    assert check_strings("x", tf.constant("é")) == (["é"], True)
    assert check_strings("x", tf.constant(["a", "b"])) == (["a", "b"], False)


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "x must be a string or a list of strings; received None"),
        (3, "x must be a string or a list of strings; received 3"),
        ({"a"}, "x must be a string or a list of strings"),
        ([3], r"x\[0\] must be a string; received 3"),
        (["a", None], r"x\[1\] must be a string; received None"),
        ([["a"]], r"x\[0\] must be a string; received \['a'\]"),
        (np.array([1, 2]), r"x\[0\] must be a string; received 1"),
        (b"\xff", "x must be valid Unicode.*invalid start byte at 0"),
        (["a", b"ab\xff"], r"x\[1\] must be valid Unicode.* at 2"),
        ("ab\ud800", "x must be valid Unicode.*surrogates not allowed at 2"),
    ],
)
def test_what_is_no_string_is_refused(value, message):
    with pytest.raises(ValueError, match=message):
        check_strings("x", value)


def test_texts_and_prompts():
    wanted = {"encoder_text": ["a"], "decoder_text": [""]}
    assert check_texts("a") == (wanted, True)
    assert check_texts({"encoder_text": ["a"]}) == (wanted, False)
    both = {"encoder_text": ["a", "b"], "decoder_text": ["c", "d"]}
    assert check_texts(both) == (both, False)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({}, "keys 'encoder_text' and, optionally, 'decoder_text'"),
        ({"decoder_text": "a"}, r"received \['decoder_text'\]"),
        ({"encoder_text": "a", 3: "b"}, r"received \['encoder_text', 3\]"),
        (
            {"encoder_text": ["a", "b"], "decoder_text": ["a"]},
            "received a list of 1 for a list of 2",
        ),
        (
            {"encoder_text": ["a"], "decoder_text": "a"},
            "received a string for a list of 1",
        ),
        ({"encoder_text": ["a"], "decoder_text": [3]}, r"decoder_text\[0\]"),
    ],
)
def test_texts_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(ValueError, match=message):
        check_texts(inputs)


@pytest.mark.parametrize(
    "inputs", [None, 3, [None], b"\xff", "\udc00", {"text": "a"}]
)
def test_generate_and_fill_mask_refuse_what_is_no_text(text_lm, inputs):
    with pytest.raises(ValueError, match="inputs"):
        text_lm.generate(inputs)
    with pytest.raises(ValueError, match="texts"):
        text_lm.fill_mask(inputs)


# --- Arrays -------------------------------------------------------------------


def test_arrays_of_any_kind(rng):
    x = tiny.inputs(rng)
    given = {
        "encoder_token_ids": x["encoder_token_ids"].tolist(),
        "encoder_padding_mask": x["encoder_padding_mask"] != 0,
        "decoder_token_ids": ops.convert_to_tensor(x["decoder_token_ids"]),
        "decoder_padding_mask": x["decoder_padding_mask"].astype("int64"),
    }
    # Ids of padding may be anything.
    given["encoder_token_ids"][1][6] = -100
    for name, value in check_arrays(given, tiny.VOCABULARY).items():
        assert value.dtype == np.int32
        np.testing.assert_array_equal(value, x[name])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"encoder_token_ids": None}, "encoder_token_ids must be whole"),
        ({"encoder_token_ids": np.ones((2, 7))}, "received float.* shape"),
        ({"encoder_token_ids": np.ones(7, int)}, "of rank 2; received"),
        (
            {"encoder_token_ids": np.ones((2, 6), int)},
            r"encoder_token_ids and its mask must .*\(2, 6\) and \(2, 7\)",
        ),
        (
            {
                "decoder_token_ids": np.ones((3, 5), int),
                "decoder_padding_mask": np.ones((3, 5), int),
            },
            r"decoder_token_ids .* shape \(2, at least 1\)",
        ),
        (
            {
                "decoder_token_ids": np.ones((2, 0), int),
                "decoder_padding_mask": np.ones((2, 0), int),
            },
            "at least 1",
        ),
        (
            {"encoder_token_ids": np.full((2, 7), 150)},
            "at least 0 and below 150; received 0 to 150",
        ),
        ({"decoder_token_ids": np.full((2, 5), -1)}, "received -1 to 0"),
        (
            {"decoder_padding_mask": np.array([[1, 1, 0, 1, 0]] * 2)},
            "decoder_padding_mask must mark the first tokens",
        ),
        ({"x": np.ones((2, 5), int)}, "with the keys encoder_token_ids, "),
    ],
)
def test_arrays_that_do_not_fit_are_refused(lm, change, message, rng):
    with pytest.raises(ValueError, match=message):
        lm.generate({**tiny.inputs(rng), **change}, stop_token_ids=None)


def test_text_is_refused_without_a_preprocessor(lm):
    with pytest.raises(ValueError, match="must be a dict of token ids"):
        lm.generate("the", stop_token_ids=None)
    with pytest.raises(ValueError, match="fill_mask must have a preproces"):
        lm.fill_mask("the <extra_id_0>")


# --- Arguments ----------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"max_length": True}, "max_length must be an int at least 1"),
        ({"max_length": "5"}, "max_length must be an int at least 1"),
        ({"max_length": 2**31}, "below 2147483648; received"),
        ({"max_new_tokens": 0}, "max_new_tokens must be an int at least 1"),
        ({"max_new_tokens": -5}, "max_new_tokens must be an int at least 1"),
        ({"max_new_tokens": False}, "max_new_tokens must be an int"),
        ({"max_length": 3, "max_new_tokens": 3}, "exclude each other"),
        ({"seed": -1}, "seed must be an int at least 0"),
        ({"seed": 1.5}, "seed must be an int at least 0"),
        ({"seed": True}, "seed must be an int at least 0"),
        ({"truncate": "yes"}, "truncate must be one of True, False"),
        ({"strip_prompt": None}, "strip_prompt must be one of True, False"),
        ({"max_cache_bytes": 0}, "max_cache_bytes must be an int at least 1"),
        ({"stop_token_ids": "</s>"}, "stop_token_ids must be 'auto', None"),
        ({"stop_token_ids": 1}, "stop_token_ids must be 'auto', None or ids"),
        ({"stop_token_ids": [1.5]}, "of at least 0 and below 150"),
        ({"stop_token_ids": [-1]}, r"received \[-1\]"),
        ({"stop_token_ids": (1, 150)}, r"received \(1, 150\)"),
    ],
)
def test_arguments_out_of_range_are_refused(text_lm, arguments, message):
    with pytest.raises(ValueError, match=message):
        text_lm.generate("the", **arguments)


def test_there_is_no_stop_token_to_ask_for(lm, rng):
    with pytest.raises(ValueError, match="stop_token_ids must be None or ids"):
        lm.generate(tiny.inputs(rng))


@pytest.mark.parametrize("stops", [[], np.array([1, 2]), (np.int64(3),)])
def test_stop_tokens_of_any_kind(lm, stops, rng):
    x = tiny.inputs(rng)
    x["decoder_padding_mask"][:, 1:] = 0
    mask = lm.generate(x, stop_token_ids=stops)["decoder_padding_mask"]
    ids = lm.generate(x, stop_token_ids=None)["decoder_token_ids"]
    for row in range(2):
        is_stop = np.isin(ids[row, 1:], stops)
        count = 2 + np.argmax(is_stop) if is_stop.any() else 5
        assert mask[row].sum() == count
