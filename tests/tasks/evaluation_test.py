import numpy as np
import pytest

from keras_switch.models import SwitchCausalLM, SwitchSeq2SeqLM
from keras_switch.tasks import (
    Example,
    Shape,
    Splits,
    Task,
    evaluation,
    predict,
    report,
    sample,
)
from tests.models import tiny

EXAMPLES = [
    Example("brown dog", "dog"),
    Example("lazy dog", "dog"),
    Example("the moon", "moon"),
    Example("the earth", "earth"),
]
SPLITS = Splits(EXAMPLES, EXAMPLES, [*EXAMPLES, Example("warm bread", "milk")])
TASK = Task(
    "nouns",
    lambda cache_dir=None: SPLITS,
    metrics=("accuracy",),
    classification=True,
)
SHAPE = Shape(12, 8)


def test_answers_are_those_of_generate():
    lm = tiny.lm()
    lm.compile()
    packer = tiny.preprocessor(
        encoder_sequence_length=12, decoder_sequence_length=9
    )
    answers = predict(lm, TASK, EXAMPLES, packer.tokenizer, SHAPE, 3)
    whole = SwitchSeq2SeqLM(lm.backbone, packer)
    whole.compile()
    texts = whole.generate([e.input for e in EXAMPLES], truncate=True)
    assert answers == [" ".join(text.split()) for text in texts]
    assert len(set(answers)) > 1


@pytest.mark.any_backend
def test_a_decoder_alone_answers_behind_its_prompt():
    lm = tiny.causal_lm()
    lm.compile()
    packer = tiny.causal_preprocessor(sequence_length=20)
    shape = Shape(12, 8, decoder_only=True)
    answers = predict(lm, TASK, EXAMPLES, packer.tokenizer, shape)
    whole = SwitchCausalLM(lm.backbone, packer)
    whole.compile()
    texts = whole.generate(
        [e.input for e in EXAMPLES], max_new_tokens=8, strip_prompt=True
    )
    assert answers == [" ".join(text.split()) for text in texts]
    assert any(answers)


@pytest.mark.any_backend
def test_answers_are_reported_beside_a_baseline():
    def answer(examples):
        return ["dog", "cat", "moon", "earth", "moon"][: len(examples)]

    found = report(TASK, SPLITS, SPLITS.test, answer)
    assert found["examples"] == 5
    assert found["metrics"] == pytest.approx({"accuracy": 60})
    assert found["baseline"] == "always 'dog'"
    assert found["baseline_metrics"] == pytest.approx({"accuracy": 40})
    assert found["invalid"] == pytest.approx(20)
    assert found["unseen_labels"] == ["milk"]
    assert found["digest"] == SPLITS.digest()


@pytest.mark.any_backend
def test_the_baseline_of_texts_is_their_beginning():
    task = Task("texts", TASK.load, metrics=("rouge1",))
    splits = Splits([Example("x", "a b c")], [], [])
    name, answers = evaluation.baseline_of(
        task, splits, [Example("d e f g h", "d"), Example("i", "i")]
    )
    assert (name, answers) == ("the first 3 words", ["d e f", "i"])


@pytest.mark.any_backend
def test_a_sample_is_spread_evenly():
    assert sample(range(10), None) == sample(range(10), 10) == list(range(10))
    assert sample(range(101), 3) == [0, 50, 100]
    assert sample(range(3), 1) == [0]
    assert len(set(sample(range(1000), 999))) == 999
    with pytest.raises(ValueError, match="most must be"):
        sample(range(3), 0)
    assert np.diff(sample(range(1000), 100)).max() <= 11
