import keras
import pytest
from keras import ops

from keras_switch.models import fill_mask
from tests.models import tiny


@pytest.fixture(scope="module")
def lm():
    keras.utils.set_random_seed(1)
    return tiny.lm(
        preprocessor=tiny.preprocessor(
            encoder_sequence_length=32, decoder_sequence_length=16
        ),
        num_encoder_layers=1,
        num_decoder_layers=1,
        encoder_sparse_step=0,
        decoder_sparse_step=0,
    )


@pytest.fixture
def answering(lm, monkeypatch):
    """A model whose answers are given, and what it was asked."""
    asked = []

    def make(*answers):
        def generate(texts, **kwargs):
            asked.append((texts, kwargs))
            return list(answers)

        monkeypatch.setattr(lm, "generate", generate)
        return lm, asked

    return make


@pytest.mark.parametrize(
    "answer, spans",
    [
        ("<extra_id_0> the cat <extra_id_1> mat", {0: "the cat", 1: "mat"}),
        ("<extra_id_0><extra_id_1>x", {0: "", 1: "x"}),
        ("<extra_id_12> a <extra_id_12> b", {12: "a"}),
        ("before <extra_id_0> a", {0: "a"}),
        ("no sentinel", {}),
        ("", {}),
    ],
)
def test_parse_answer(answer, spans):
    assert fill_mask.parse_answer(answer) == spans


def test_fill_in_keeps_the_text_around():
    text = "The <extra_id_0> sat (<extra_id_1>), <extra_id_2>."
    answer = "<extra_id_0> black {cat} <extra_id_1> down"
    filled = fill_mask.fill_in(text, answer)
    assert filled == "The black {cat} sat (down), ...."
    filled = fill_mask.fill_in(text, answer, mark="[{}]", missing="")
    assert filled == "The [black {cat}] sat ([down]), []."


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("no blank", "no blank"),
        ("<extra_id_7>", "<extra_id_0>"),
        ("a <extra_id_1><extra_id_0> b", "a <extra_id_0><extra_id_1> b"),
        (
            "<extra_id_0> a <extra_id_0> b <extra_id_200>",
            "<extra_id_0> a <extra_id_1> b <extra_id_2>",
        ),
        ("<extra_id_x> <extra_id_>", "<extra_id_x> <extra_id_>"),
    ],
)
def test_blanks_are_numbered_in_their_order(text, wanted):
    assert fill_mask.number_blanks(text) == wanted


def test_a_text_is_filled(answering):
    lm, asked = answering("<extra_id_0> dog <extra_id_1> small park")
    text = "The <extra_id_3> walks in the <extra_id_3>."
    filled = lm.fill_mask(text, seed=3)
    assert filled == "The dog walks in the small park."
    numbered = "The <extra_id_0> walks in the <extra_id_1>."
    assert asked == [([numbered], {"seed": 3})]


def test_a_batch_of_texts_with_and_without_blanks(answering):
    lm, asked = answering("<extra_id_0> dog", "", "<extra_id_1> b")
    texts = (
        "a <extra_id_0>",
        "no blank",
        "c <extra_id_0>",
        b"<extra_id_0> <extra_id_1>",
    )
    filled = lm.fill_mask(texts, missing="?")
    assert filled == ["a dog", "no blank", "c ?", "? b"]
    assert len(asked[0][0]) == 3


def test_nothing_to_fill(lm):
    assert lm.fill_mask([]) == []
    assert lm.fill_mask("no blank") == "no blank"


def test_more_blanks_than_sentinels_are_refused(lm):
    texts = ["<extra_id_0>", " ".join(["<extra_id_0>"] * 101)]
    with pytest.raises(ValueError, match="received 101 blanks in row 1"):
        lm.fill_mask(texts)


def test_arguments_of_generate_are_checked(lm):
    with pytest.raises(ValueError, match="max_new_tokens must be an int"):
        lm.fill_mask("the <extra_id_0>", max_new_tokens=0)


def test_end_to_end(lm):
    """A model that answers the same whatever it reads."""
    lm.compile(sampler="greedy")
    tokenizer = lm.preprocessor.tokenizer
    answer = tokenizer("<extra_id_0> dog <extra_id_1> park")
    ids = [0, *map(int, answer), 1]
    width = 16

    def step(inputs, stop_token_ids=None):
        rows = inputs["encoder_token_ids"].shape[0]
        row = (ids + [5] * width)[:width]
        mask = [i < len(ids) for i in range(width)]
        return {
            "decoder_token_ids": ops.convert_to_tensor([row] * rows),
            "decoder_padding_mask": ops.convert_to_tensor([mask] * rows),
            "decoder_finite_mask": ops.ones((rows, width), "bool"),
        }

    lm.generate_step, original = step, lm.generate_step
    lm.generate_function = None
    try:
        texts = ["The <extra_id_0> in the <extra_id_1>."] * 3
        assert lm.fill_mask(texts) == ["The dog in the park."] * 3
        assert lm.fill_mask(texts[0]) == "The dog in the park."
    finally:
        lm.generate_step, lm.generate_function = original, None


def test_an_untrained_model_leaves_no_blank(lm):
    filled = lm.fill_mask("the <extra_id_0> dog", max_new_tokens=3)
    assert filled.startswith("the ") and filled.endswith(" dog")
    assert "<extra_id_0>" not in filled
