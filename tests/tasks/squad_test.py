import pytest

from keras_switch.tasks import squad


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The Cat, sat!", "cat sat"),
        ("an  apple a day", "apple day"),
        ("theatre", "theatre"),
        ("U.S.A.", "usa"),
        ("a the An", ""),
    ],
)
def test_answers_are_normalized(text, wanted):
    assert squad.normalize(text) == wanted


# The values of the official script.
@pytest.mark.parametrize(
    "prediction, reference, exact, f1",
    [
        ("the Denver Broncos", "Denver Broncos", 1, 1),
        ("Denver", "Denver Broncos", 0, 2 / 3),
        ("Denver Denver", "Denver", 0, 2 / 3),
        ("red blue", "green", 0, 0),
        ("", "the", 1, 1),
        ("", "cat", 0, 0),
    ],
)
def test_scores_of_answers(prediction, reference, exact, f1):
    assert squad.exact_match(prediction, reference) == exact
    assert squad.token_f1(prediction, reference) == pytest.approx(f1)
