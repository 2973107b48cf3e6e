"""Small corpora for the tests of keras_switch.data."""

import numpy as np
import pytest

from keras_switch.data import (
    Document,
    TokenizedCorpus,
    encode_documents,
    train_sentencepiece,
)


def corpus_of(lengths, first=10, dtype=np.uint16):
    """Documents of the given lengths whose tokens count up from `first`."""
    total = int(np.sum(lengths))
    return TokenizedCorpus(
        np.arange(first, first + total).astype(dtype),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.zeros(len(lengths), np.int32),
        ("all",),
        f"{lengths}",
    )


@pytest.fixture
def make_corpus():
    return corpus_of


@pytest.fixture(scope="session")
def documents():
    """Two domains of 40 documents, of made-up but repeating words."""
    rng = np.random.default_rng(3)
    syllables = ["ba", "ke", "lo", "mi", "nu", "pra", "sti", "wen"]
    words = ["".join(rng.choice(syllables, 3)) for _ in range(200)]
    return [
        Document(" ".join(rng.choice(words, 30 + i)), domain)
        for domain in ("news", "wiki")
        for i in range(40)
    ]


@pytest.fixture(scope="session")
def vocabulary(documents, tmp_path_factory):
    """A SentencePiece file of 400 pieces."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocabulary.spm"
    return train_sentencepiece((d.text for d in documents), 400, path)


@pytest.fixture(scope="session")
def encoded(documents, vocabulary):
    return encode_documents(documents, vocabulary)
