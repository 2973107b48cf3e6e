"""A corpus as one flat array of token ids, encoded once and cached."""

import hashlib
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import sentencepiece
from absl import logging

from keras_switch.data.corpus import Document
from keras_switch.files import atomic_write

# Texts encoded at a time: bounds the memory of SentencePiece's answer, lists
# of Python integers.
_CHUNK = 4096

# What numpy raises at a file that is cut off or no archive at all.
_DAMAGED = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class TokenizedCorpus(NamedTuple):
    """Documents as token ids, end to end, without special tokens.

    Args:
        tokens: uint16 or int32 `[N]`, all documents one after the other.
        offsets: int64 `[documents + 1]`; document d is
            `tokens[offsets[d]:offsets[d + 1]]`.
        domain: int32 `[documents]`, an index into `domains`.
        domains: tuple of labels, sorted.
        digest: hex digest of the texts, the labels and the vocabulary.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    domain: np.ndarray
    domains: tuple
    digest: str

    def document(self, index: int) -> np.ndarray:
        """The token ids of one document.

        Args:
            index: which document.

        Returns:
            Integers `[length]`.
        """
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def encode_documents(
    documents: Sequence[Document],
    vocabulary: str | os.PathLike,
    cache_dir: str | os.PathLike | None = None,
    num_threads: int | None = None,
) -> TokenizedCorpus:
    """Encodes documents with a SentencePiece model.

    Args:
        documents: the documents; also the part of a split.
        vocabulary: path of the SentencePiece file.
        cache_dir: a folder to keep the result in, under a name made of the
            digest of texts and vocabulary; None = do not keep it.
        num_threads: threads that encode; None = one per core.

    Returns:
        The `TokenizedCorpus`, the same whether cached or not.

    Raises:
        ValueError: if there is no document, the vocabulary file is not one,
            or no document has a token.
    """
    if not documents:
        raise ValueError("documents must hold at least one; received none.")
    model = pathlib.Path(vocabulary).read_bytes()
    digest = _digest(documents, model)
    path = cache_dir and pathlib.Path(cache_dir) / f"tokens-{digest[:32]}.npz"
    corpus = path and _load(path, digest)
    if not corpus:
        corpus = _encode(documents, _processor(model, vocabulary), num_threads)
        corpus = corpus._replace(digest=digest)
        if path:
            _save(path, corpus)
    if not corpus.tokens.size:
        raise ValueError(
            "documents must hold text; received "
            f"{len(documents)} documents without a token."
        )
    return corpus


def _digest(documents, model):
    digest = hashlib.sha256()
    # The version: a release may normalise text differently.
    for part in (sentencepiece.__version__.encode(), model):
        digest.update(hashlib.sha256(part).digest())
    for text, domain in documents:
        # Lengths in front, so that two splittings never look the same.
        for part in (text.encode("utf-8"), domain.encode("utf-8")):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
    return digest.hexdigest()


def _processor(model, vocabulary):
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(
            "vocabulary must be a SentencePiece model file; received "
            f"{os.fspath(vocabulary)!r}, which cannot be read."
        ) from error


def _encode(documents, processor, num_threads):
    threads = num_threads or os.cpu_count() or 1
    small = processor.get_piece_size() <= 2**16
    dtype = np.uint16 if small else np.int32
    arrays = []
    for start in range(0, len(documents), _CHUNK):
        texts = [d.text for d in documents[start : start + _CHUNK]]
        encoded = processor.encode(texts, num_threads=threads)
        arrays += [np.asarray(ids, dtype) for ids in encoded]
    lengths = [0] + [len(ids) for ids in arrays]
    domains = tuple(sorted({d.domain for d in documents}))
    index = {name: i for i, name in enumerate(domains)}
    return TokenizedCorpus(
        np.concatenate(arrays),
        np.cumsum(lengths, dtype=np.int64),
        np.array([index[d.domain] for d in documents], np.int32),
        domains,
        "",
    )


def _save(path, corpus):
    with atomic_write(path) as temporary:
        # Through a file object: given a name, numpy may add an extension.
        with open(temporary, "wb") as file:
            np.savez(file, **corpus._asdict())


def _load(path, digest):
    """The cached corpus, or None if there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            fields = {name: saved[name] for name in TokenizedCorpus._fields}
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        logging.warning("%s is damaged and is made again: %s", path, error)
        return None
    if str(fields["digest"]) != digest:
        logging.warning("%s is of another corpus and is made again.", path)
        return None
    fields["domains"] = tuple(str(name) for name in fields["domains"])
    return TokenizedCorpus(**fields | {"digest": digest})
