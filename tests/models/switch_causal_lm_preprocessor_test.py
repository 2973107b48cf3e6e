import numpy as np
import pytest

from keras_switch.models import SwitchCausalLMPreprocessor
from tests.models import tiny


@pytest.fixture(scope="module")
def preprocessor():
    return tiny.causal_preprocessor()


def ids_of(preprocessor, text):
    return list(map(int, preprocessor.tokenizer(text)))


def rows(x):
    return {name: np.asarray(value).tolist() for name, value in x.items()}


def test_a_row_starts_from_padding_and_is_shifted_by_one(preprocessor):
    ids = ids_of(preprocessor, "the dog")
    x, y, weights = preprocessor(["the dog", "the"])
    x = rows(x)
    full = [0, *ids, 1]
    missing = [0] * (10 - len(full))
    assert x["token_ids"][0] == full + missing
    assert x["padding_mask"][0] == [True] * len(full) + missing
    assert np.asarray(y)[0].tolist() == [*ids, 1, 0, *missing]
    real = len(full) - 1
    assert np.asarray(weights)[0].tolist() == [True] * real + [False] * (
        10 - real
    )


def test_a_long_text_is_cut_and_its_last_token_is_a_target(preprocessor):
    text = tiny.TEXTS[0]
    ids = ids_of(preprocessor, text)
    x, y, weights = preprocessor([text])
    assert np.asarray(x["token_ids"])[0].tolist() == [0, *ids[:9]]
    assert np.asarray(y)[0].tolist() == [*ids[:9], 1]
    assert np.asarray(weights).all()


def test_prompts_have_no_end(preprocessor):
    ids = ids_of(preprocessor, "the dog")
    x = rows(preprocessor.generate_preprocess(["the dog"], sequence_length=9))
    assert x["token_ids"] == [[0, *ids] + [0] * (8 - len(ids))]
    assert sum(x["padding_mask"][0]) == len(ids) + 1


def test_prompts_that_are_too_long(preprocessor):
    long = tiny.TEXTS[0]
    with pytest.raises(ValueError, match="at most 10 tokens.*in row 1"):
        preprocessor.generate_preprocess(["the", long], truncate=False)
    x = preprocessor.generate_preprocess([long])
    assert np.asarray(x["token_ids"]).shape == (1, 10)


def test_back_to_strings(preprocessor):
    ids = ids_of(preprocessor, "the dog")
    row = np.array([0, *ids, 1, 7])
    mask = np.array([1] * (len(ids) + 2) + [0])
    one = {"token_ids": row, "padding_mask": mask}
    assert preprocessor.generate_postprocess(one) == "the dog"
    batch = {name: np.stack([value] * 2) for name, value in one.items()}
    assert preprocessor.generate_postprocess(batch) == ["the dog"] * 2


def test_config_round_trip(preprocessor):
    made = tiny.causal_preprocessor(sequence_length=7, add_start_token=False)
    again = SwitchCausalLMPreprocessor.from_config(made.get_config())
    assert (again.sequence_length, again.add_start_token) == (7, False)
