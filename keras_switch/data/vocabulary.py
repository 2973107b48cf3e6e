"""Training a SentencePiece vocabulary with T5's special ids."""

import io
import os
import pathlib
import re
from collections.abc import Iterable

import numpy as np
import sentencepiece

from keras_switch.data.checks import check_integer
from keras_switch.data.files import atomic_write

NUM_SENTINELS = 100
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

# SentencePiece skips "sentences" over 4,192 bytes: documents are cut, between
# words, into stretches of at most 512 characters (a longer word is a stretch).
_STRETCH = re.compile(r"\S.{0,511}(?!\S)|\S+", re.DOTALL)


def train_sentencepiece(
    texts: Iterable[str],
    vocabulary_size: int,
    path: str | os.PathLike,
    seed: int = 0,
    max_sentences: int = 10_000,
    byte_fallback: bool = True,
) -> pathlib.Path:
    """Trains a unigram SentencePiece model with T5's special ids.

    Ids are pad 0, end of sequence 1, unknown 2, and no start of sequence. The
    sentinels `<extra_id_0>` to `<extra_id_99>` are not pieces of the file:
    the tokenizer adds them above, so that the model's vocabulary has
    `vocabulary_size + 100` ids and `<extra_id_i>` is id
    `vocabulary_size + 99 - i`, as in T5. The same texts and arguments give
    the same file.

    Args:
        texts: the training documents.
        vocabulary_size: the number of pieces, without the sentinels.
        path: the file to write, usually `vocabulary.spm`.
        seed: seed of the choice of sentences.
        max_sentences: at most this many stretches of text of about 500
            characters are used, drawn from the whole; a limit on time (6 s for
            8,000 pieces on two cores) and memory.
        byte_fallback: whether 256 of the pieces are the bytes, so that no
            text is ever unknown. T5's own vocabulary has none.

    Returns:
        `path`.

    Raises:
        ValueError: if a size is not positive, there is no text, or the text
            is too small for the vocabulary.

    Reference:
        Kudo 2018, arXiv:1804.10959; Raffel et al. 2020, arXiv:1910.10683,
        section 2.2.1.
    """
    check_integer("vocabulary_size", vocabulary_size, 1)
    check_integer("max_sentences", max_sentences, 1)
    check_integer("seed", seed, 0)
    sentences = _stretches(texts)
    if not sentences:
        raise ValueError("texts must hold some text; received none.")
    if len(sentences) > max_sentences:
        sentences = _sample(sentences, max_sentences, seed)
    model = _train(sentences, vocabulary_size, byte_fallback)
    with atomic_write(path) as temporary:
        temporary.write_bytes(model)
    return pathlib.Path(path)


def _stretches(texts):
    return [part for text in texts for part in _STRETCH.findall(text)]


def _sample(sentences, count, seed):
    order = np.random.Generator(np.random.Philox(seed)).random(len(sentences))
    chosen = np.sort(np.argsort(order, kind="stable")[:count])
    return [sentences[i] for i in chosen]


def _train(sentences, vocabulary_size, byte_fallback):
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocabulary_size,
            model_type="unigram",
            pad_id=PAD_ID,
            eos_id=EOS_ID,
            unk_id=UNK_ID,
            bos_id=-1,
            byte_fallback=byte_fallback,
            character_coverage=0.9999,
            # The order of float sums follows the number of threads: a fixed
            # number makes the file the same on every machine.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"vocabulary_size must fit the texts; received {vocabulary_size} "
            f"and {len(sentences)} stretches of text: {error}"
        ) from error
    return model.getvalue()
