import sys

import pytest

from keras_switch.tasks import METRICS, compute

GIVEN = ["the cat sat on the mat", "a dog barked"]
WANTED = ["the cat sat on the mat", "a bird sang"]


def test_every_metric_is_100_for_the_references_alone():
    scores = compute(METRICS, WANTED, WANTED)
    # Its four-grams do not all exist in short texts, which are smoothed.
    assert scores == pytest.approx(dict.fromkeys(METRICS, 100.0))
    assert list(scores) == list(METRICS)


def test_metrics_are_in_per_cent():
    scores = compute(METRICS, GIVEN, WANTED)
    assert scores["accuracy"] == scores["exact_match"] == 50
    assert scores["rouge1"] == pytest.approx((100 + 100 / 3) / 2)
    assert scores["token_f1"] == pytest.approx(50)
    assert 50 < scores["bleu"] < 100 and 50 < scores["chrf"] < 100


def test_a_prediction_that_is_no_label_is_wrong():
    names = ("accuracy", "macro_f1")
    scores = compute(names, ["a", "nonsense", ""], ["a", "a", "b"])
    assert scores["accuracy"] == pytest.approx(100 / 3)
    # Of the labels a and b alone: F1 is 2 / 3 and 0.
    assert scores["macro_f1"] == pytest.approx(100 / 3)


def test_what_is_no_metric_is_refused():
    with pytest.raises(ValueError, match=r"received \['bleurt'\]"):
        compute(["bleu", "bleurt"], GIVEN, WANTED)
    with pytest.raises(ValueError, match=r"received \[\]"):
        compute([], GIVEN, WANTED)
    with pytest.raises(ValueError, match="received 1 and 2"):
        compute(["bleu"], GIVEN[:1], WANTED)
    with pytest.raises(ValueError, match="at least one"):
        compute(["bleu"], [], [])


@pytest.mark.parametrize(
    "package, name",
    [
        ("sklearn.metrics", "accuracy"),
        ("sklearn.metrics", "macro_f1"),
        ("rouge_score.rouge_scorer", "rougeL"),
        ("sacrebleu", "bleu"),
        ("sacrebleu", "chrf"),
    ],
)
def test_a_missing_package_is_named(package, name, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'install "keras-switch\[tasks\]"'):
        compute([name], GIVEN, WANTED)
