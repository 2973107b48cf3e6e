"""Texts and vocabularies for the tests of tokenizer files."""

import functools
import io

import sentencepiece

from tests.models import tiny

TEXTS = (
    *tiny.TEXTS,
    "",
    " ",
    "  two  spaces, lines\nand\ttabs \r\n",
    "no\xa0break \u3000wide\u200bzero, a\x85b and \x85",
    "caf\xe9 na\xefve \xdcber Stra\xdfe \ufb01ne \xbd \u2460 \uff21",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u6771\u4eac \U0001f600 \U00012345",
    "a <0x41> or <0x0A><0xFF> <0xGG> {x} [y] ~`\\^",
    "nul\0 one\x01",
)
BLANKS = (
    "<extra_id_0>",
    "The <extra_id_0> walks in <extra_id_1> park.",
    "<extra_id_0><extra_id_99>  <extra_id_5> ",
    "do<extra_id_3>g, <extra_id_100> <extra_id_",
)
# Arguments of training.
MODELS = {
    "bytes": {"vocab_size": 320, "byte_fallback": True},
    "unknown elsewhere": {"unk_id": 0, "pad_id": 1, "eos_id": 2},
    "case folded": {"normalization_rule_name": "nmt_nfkc_cf"},
    "not normalised": {"normalization_rule_name": "identity"},
}


@functools.cache
def model(name: str) -> bytes:
    """A unigram model of `MODELS`."""
    return train(**MODELS[name])


def train(**arguments) -> bytes:
    """A unigram model of the tiny texts."""
    content = io.BytesIO()
    arguments = {
        "vocab_size": 60,
        "pad_id": 0,
        "eos_id": 1,
        "unk_id": 2,
        **arguments,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.TEXTS * 10),
        model_writer=content,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=9,
        **arguments,
    )
    return content.getvalue()
