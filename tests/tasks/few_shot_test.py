import numpy as np
import pytest

from keras_switch.tasks import Example, Splits, Task, few_shot
from tests.models import tiny

TRAIN = [
    Example("brown dog", "dog"),
    Example("the moon", "moon"),
    Example("the earth", "round earth"),
]
TASK = Task(
    "nouns",
    lambda cache_dir=None: Splits(TRAIN, TRAIN, TRAIN),
    metrics=("accuracy",),
    classification=True,
)


class Copier:
    """Finds likeliest whatever tokens it was asked about last."""

    def __init__(self, vocabulary=150):
        self.vocabulary = vocabulary
        self.batches = []

    def predict_on_batch(self, x):
        self.batches.append(x)
        rows = []
        for ids, mask in zip(x["token_ids"], x["padding_mask"], strict=True):
            row = np.zeros((len(ids), self.vocabulary), np.float32)
            row[:, ids[mask > 0][:9]] = 5
            rows.append(row)
        return np.stack(rows)


@pytest.fixture
def tokenizer():
    return tiny.preprocessor().tokenizer


def test_the_likeliest_label_is_the_answer(tokenizer):
    asked = [Example("moon moon", ""), Example("dog dog", "")]
    lm = Copier()
    answers = few_shot(lm, TASK, TRAIN, asked, tokenizer, 40, 0, batch_size=4)
    assert answers == ["moon", "dog"]
    assert len(lm.batches) == 2
    assert {x["token_ids"].shape for x in lm.batches} == {(4, 40)}


def test_shots_stand_before_the_question(tokenizer):
    lm = Copier()
    asked = [Example("warm bread and warm milk", "")]
    few_shot(lm, TASK, TRAIN, asked, tokenizer, 100, 2, batch_size=3)
    text = tokenizer.detokenize(lm.batches[0]["token_ids"][0].tolist())
    # The colon is not in this vocabulary.
    assert text.count("answer") == 3
    assert "bread" in text.split("answer")[2]
    other = Copier()
    few_shot(other, TASK, TRAIN, asked, tokenizer, 100, 2, 1, batch_size=3)
    ids = [m.batches[0]["token_ids"] for m in (lm, other)]
    assert (ids[0] != ids[1]).any()


def test_a_real_model_answers_with_labels(tokenizer):
    lm = tiny.causal_lm()
    lm.compile()
    answers = few_shot(lm, TASK, TRAIN, TRAIN, tokenizer, 64, 1, batch_size=9)
    assert len(answers) == 3 and set(answers) <= {e.target for e in TRAIN}


def test_what_cannot_be_asked_is_refused(tokenizer):
    texts = Task("texts", TASK.load)
    for task, shots in ((texts, 1), (TASK, 4)):
        with pytest.raises(ValueError, match="must be given a classification"):
            few_shot(None, task, TRAIN, TRAIN, tokenizer, 64, shots)
    with pytest.raises(ValueError, match="room for 3 inputs beside"):
        few_shot(None, TASK, TRAIN, TRAIN, tokenizer, 20, 2)
    with pytest.raises(ValueError, match="shots must be an integer"):
        few_shot(None, TASK, TRAIN, TRAIN, tokenizer, 20, -1)
