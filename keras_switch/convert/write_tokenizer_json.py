"""A SentencePiece model as the `tokenizer.json` of `transformers`."""

import base64
from typing import Any

from keras_switch.convert.read_tokenizer_json import (
    COLLAPSE,
    CONTROL,
    CUT_BYTES,
    METASPACE,
    NO_END,
    UNIGRAM,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    is_own_sentinel,
    protocol,
    sentinel,
)

_END = "</s>"
_SPECIAL = (CONTROL, UNKNOWN)


def tokenizer_json(proto: bytes, extra_ids: int) -> dict[str, Any]:
    """The `tokenizer.json` of a `SwitchTokenizer`.

    Args:
        proto: Its SentencePiece model.
        extra_ids: Number of its sentinels.

    Returns:
        What to write as JSON.

    Raises:
        ValueError: if `transformers` cannot do what the model does, and why.
    """
    model = protocol().ModelProto()
    model.ParseFromString(proto)
    _check_representable(model)
    vocabulary = [[piece.piece, piece.score] for piece in model.pieces]
    types = [piece.type for piece in model.pieces]
    special = [i for i, kind in enumerate(types) if kind in _SPECIAL]
    special += range(len(types), len(types) + extra_ids)
    vocabulary += [[sentinel(i), 0.0] for i in reversed(range(extra_ids))]
    has_bytes = model.trainer_spec.byte_fallback
    characters = model.normalizer_spec.precompiled_charsmap
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(i, vocabulary[i][0]) for i in special],
        "normalizer": _sequence("normalizers", _normalizers(characters)),
        "pre_tokenizer": _sequence(
            "pretokenizers", [METASPACE] + [CUT_BYTES] * has_bytes
        ),
        "post_processor": _appends_end([p for p, _ in vocabulary].index(_END)),
        "decoder": _sequence(
            "decoders", [{"type": "ByteFallback"}] * has_bytes + [METASPACE]
        ),
        "model": {
            "type": "Unigram",
            "unk_id": types.index(UNKNOWN),
            "vocab": vocabulary,
            "byte_fallback": has_bytes,
        },
    }


def _check_representable(model):
    normalizer, trainer = model.normalizer_spec, model.trainer_spec
    odd = [
        piece.piece
        for piece in model.pieces
        if piece.type in (UNUSED, USER_DEFINED)
        and not is_own_sentinel(piece.piece)
    ]
    for is_right, what, wanted in (
        (trainer.model_type == UNIGRAM, "model_type", "unigram"),
        (normalizer.add_dummy_prefix, "add_dummy_prefix", True),
        (
            normalizer.remove_extra_whitespaces,
            "remove_extra_whitespaces",
            True,
        ),
        (normalizer.escape_whitespaces, "escape_whitespaces", True),
        (
            not trainer.treat_whitespace_as_suffix,
            "treat_whitespace_as_suffix",
            False,
        ),
        (not odd, "the number of unused and user-defined pieces", 0),
    ):
        if not is_right:
            raise ValueError(
                f"For transformers to represent a SentencePiece model, {what} "
                f"must be {wanted}; received a model where it is not."
            )


def _special(index, token):
    return {
        "id": index,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


def _normalizers(characters):
    table = base64.b64encode(characters).decode("ascii")
    step = {"type": "Precompiled", "precompiled_charsmap": table}
    return [step] * bool(characters) + [NO_END, COLLAPSE]


def _sequence(plural, steps):
    return {"type": "Sequence", plural: steps}


def _appends_end(index):
    first, second = (
        [
            {"Sequence": {"id": name, "type_id": 0}},
            {"SpecialToken": {"id": _END, "type_id": 0}},
        ]
        for name in "AB"
    )
    end = {"id": _END, "ids": [index], "tokens": [_END]}
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": first + second,
        "special_tokens": {_END: end},
    }
