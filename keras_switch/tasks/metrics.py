"""Scores of answers against references, in per cent."""

import contextlib
from collections.abc import Iterator, Sequence

from keras_switch.tasks import squad

ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = (
    "accuracy",
    "macro_f1",
    *ROUGE,
    "bleu",
    "chrf",
    "exact_match",
    "token_f1",
)


def compute(
    names: Sequence[str], predictions: Sequence[str], references: Sequence[str]
) -> dict[str, float]:
    """Scores of answers.

    - `accuracy`, `macro_f1`: of scikit-learn. A prediction that is no label
      is wrong; the mean of `macro_f1` is over the labels of the references.
    - `rouge1`, `rouge2`, `rougeL`: F-measures of rouge-score, with stemming;
      means over the examples. It reads Latin letters and digits alone.
    - `bleu`, `chrf`: of sacrebleu, with its defaults, over the corpus.
    - `exact_match`, `token_f1`: as SQuAD, means over the examples.

    Args:
        names: which, of `METRICS`.
        predictions: the answers.
        references: as many.

    Returns:
        From 0 to 100, by name.

    Raises:
        ValueError: if a name is unknown, the lengths differ or are 0.
        ImportError: if a package is missing, with how to install it.
    """
    check_metrics(names)
    if len(predictions) != len(references) or not references:
        raise ValueError(
            "predictions and references must be as many, and at least one; "
            f"received {len(predictions)} and {len(references)}."
        )
    rouge = [name for name in names if name in ROUGE]
    scores = _rouge(rouge, predictions, references) if rouge else {}
    for name in names:
        if name not in rouge:
            scores[name] = _FUNCTIONS[name](predictions, references)
    return {name: float(scores[name]) for name in names}


def check_metrics(names: Sequence[str]) -> None:
    """Refuses what is no metric.

    Args:
        names: the names.

    Raises:
        ValueError: with those that there are.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(
            f"metrics must be some of {', '.join(METRICS)}; received "
            f"{unknown or list(names)}."
        )


@contextlib.contextmanager
def _asked_for() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise ImportError(
            f"{error}. Metrics take packages of their own: "
            'pip install "keras-switch[tasks]".'
        ) from error


def _accuracy(predictions, references):
    with _asked_for():
        from sklearn.metrics import accuracy_score
    return 100 * accuracy_score(list(references), list(predictions))


def _macro_f1(predictions, references):
    with _asked_for():
        from sklearn.metrics import f1_score
    return 100 * f1_score(
        list(references),
        list(predictions),
        labels=sorted(set(references)),
        average="macro",
        zero_division=0,
    )


def _rouge(names, predictions, references):
    with _asked_for():
        from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(names, use_stemmer=True)
    scores = [
        scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {
        name: 100 * sum(s[name].fmeasure for s in scores) / len(scores)
        for name in names
    }


def _bleu(predictions, references):
    with _asked_for():
        import sacrebleu
    return sacrebleu.corpus_bleu(list(predictions), [list(references)]).score


def _chrf(predictions, references):
    with _asked_for():
        import sacrebleu
    return sacrebleu.corpus_chrf(list(predictions), [list(references)]).score


def _mean_of(function):
    def mean(predictions, references):
        pairs = zip(predictions, references, strict=True)
        return 100 * sum(function(*pair) for pair in pairs) / len(references)

    return mean


_FUNCTIONS = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "bleu": _bleu,
    "chrf": _chrf,
    "exact_match": _mean_of(squad.exact_match),
    "token_f1": _mean_of(squad.token_f1),
}
