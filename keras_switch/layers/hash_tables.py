"""Tables of hash routing: which expert each token of the vocabulary has.

Each function makes an int32 array `[num_hashes, vocabulary]` for
`HashRouter.assign_table`, out of NumPy arrays, once, before training.

Reference: Roller et al. 2021, Hash Layers (arXiv 2106.04426), section 3.
"""

import heapq
from typing import Any

import numpy as np

from keras_switch.layers.validation import check_number

_ROUNDS = 20


def random_table(
    vocabulary_size: int,
    num_experts: int,
    num_hashes: int = 1,
    seed: int | None = None,
) -> np.ndarray:
    """Experts at random, each with equally many tokens of the vocabulary.

    With one hash the counts of two experts differ by one at most; with more
    they may differ by a few, as the experts of a token are different ones.

    Args:
        vocabulary_size: int, at least 1.
        num_experts: int, at least `num_hashes`.
        num_hashes: int, experts of a token.
        seed: optional int.

    Returns:
        int32 `[num_hashes, vocabulary_size]`.
    """
    check_number("vocabulary_size", vocabulary_size, whole=True, at_least=1)
    _check_hashes(num_hashes, num_experts)
    rng = np.random.default_rng(seed)
    dealt = np.arange(vocabulary_size) % num_experts
    table = np.empty((num_hashes, vocabulary_size), "int32")
    for row in range(num_hashes):
        table[row] = rng.permutation(dealt)
        while (taken := (table[:row] == table[row]).any(axis=0)).any():
            table[row, taken] = (table[row, taken] + 1) % num_experts
    return table


def balanced_table(
    token_counts: Any, num_experts: int, num_hashes: int = 1
) -> np.ndarray:
    """Experts with equally many tokens of a corpus, or nearly so.

    From the most frequent token on, each goes to the experts that have the
    fewest tokens of the corpus so far. One that never occurs counts as half a
    token, so that these are shared out, too.

    Args:
        token_counts: `[vocabulary]`, how often each token stands in a corpus.
        num_experts: int, at least `num_hashes`.
        num_hashes: int, experts of a token.

    Returns:
        int32 `[num_hashes, vocabulary]`.
    """
    counts = np.asarray(token_counts)
    if counts.ndim != 1 or not len(counts) or not (counts >= 0).all():
        raise ValueError(
            "token_counts must be numbers of at least 0, one for each token of "
            f"the vocabulary; received {token_counts!r}."
        )
    _check_hashes(num_hashes, num_experts)
    table = np.empty((num_hashes, len(counts)), "int32")
    heap = [(0, expert) for expert in range(num_experts)]
    for token in np.argsort(-counts, kind="stable"):
        emptiest = [heapq.heappop(heap) for _ in range(num_hashes)]
        for row, (load, expert) in enumerate(emptiest):
            table[row, token] = expert
            load += max(counts[token].item(), 0.5)
            heapq.heappush(heap, (load, expert))
    return table


def clustered_table(
    embeddings: Any, num_experts: int, seed: int | None = None
) -> np.ndarray:
    """Experts of similar tokens: k-means of embeddings of a trained model.

    The paper finds it worse than the balanced and the random table.

    Args:
        embeddings: `[vocabulary, D]`.
        num_experts: int, at most the size of the vocabulary.
        seed: optional int, for the first centroids.

    Returns:
        int32 `[1, vocabulary]`.
    """
    rows = np.asarray(embeddings, "float64")
    if rows.ndim != 2 or len(rows) < num_experts:
        raise ValueError(
            "embeddings must be of shape [vocabulary, D] with at least "
            f"num_experts={num_experts} rows; received shape {rows.shape}."
        )
    rng = np.random.default_rng(seed)
    centroids = rows[rng.choice(len(rows), num_experts, replace=False)]
    for _ in range(_ROUNDS):
        nearest = _nearest(rows, centroids)
        for expert in range(num_experts):
            if (nearest == expert).any():
                centroids[expert] = rows[nearest == expert].mean(axis=0)
    return _nearest(rows, centroids)[None].astype("int32")


def _nearest(rows, centroids):
    # |x - c|^2 without |x|^2, which is the same for all.
    distance = (centroids**2).sum(-1) - 2 * rows @ centroids.T
    return np.argmin(distance, axis=-1)


def _check_hashes(num_hashes, num_experts):
    check_number("num_experts", num_experts, whole=True, at_least=1)
    check_number("num_hashes", num_hashes, whole=True, at_least=1)
    if num_hashes > num_experts:
        raise ValueError(
            "num_hashes must be at most num_experts; received "
            f"num_hashes={num_hashes}, num_experts={num_experts}."
        )
