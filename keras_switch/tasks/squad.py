"""Exact match and token F1 as the SQuAD evaluation defines them.

Reference: Rajpurkar et al., 2016, arXiv:1606.05250, section 6.1.
"""

import collections
import re
import string

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles.

    Args:
        text: an answer.

    Returns:
        The rest, with single spaces.
    """
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, reference: str) -> float:
    """1.0 if both are the same when normalized, else 0.0."""
    return float(normalize(prediction) == normalize(reference))


def token_f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall of words.

    Args:
        prediction: what a model answered.
        reference: what it should have answered.

    Returns:
        From 0.0 to 1.0. If either is empty when normalized, 1.0 where both
        are and otherwise 0.0.
    """
    given = normalize(prediction).split()
    wanted = normalize(reference).split()
    if not given or not wanted:
        return float(given == wanted)
    shared = collections.Counter(given) & collections.Counter(wanted)
    common = sum(shared.values())
    # 2PR / (P + R) with P = common / given and R = common / wanted.
    return 2 * common / (len(given) + len(wanted))
