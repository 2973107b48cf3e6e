import numpy as np
import pytest

from keras_switch_train import blanks

WORDS = "one two three four five six seven eight nine ten eleven twelve"


@pytest.mark.parametrize("seed", range(20))
def test_blanks_and_answers_make_the_text_again(seed):
    rng = np.random.default_rng(seed)
    blanked = blanks.blank_out(WORDS, rng, blanks=3)
    text = blanked.prompt
    for i, answer in enumerate(blanked.answers):
        assert text.count(f"<extra_id_{i}>") == 1
        assert 1 <= len(answer.split()) <= 3
        text = text.replace(f"<extra_id_{i}>", answer)
    assert text == WORDS
    assert "> <" not in blanked.prompt  # blanks never touch


def test_shortest_text_that_has_room():
    blanked = blanks.blank_out("a b c d e", np.random.default_rng(0), blanks=2)
    assert len(blanked.answers) == 2


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="at least 7 words; received 4"):
        blanks.blank_out("a b c d", np.random.default_rng(0))


def test_describe_shows_model_and_truth():
    text = "a <extra_id_0> c <extra_id_1>"
    blanked = blanks.Blanked(text, ("b", "d"))
    lines = blanks.describe(blanked, "<extra_id_0> x").splitlines()
    assert lines == ["model: a [x] c [...]", "truth: a [b] c [d]"]
