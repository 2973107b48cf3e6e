"""`tokenizer.json` of `transformers` as a SentencePiece model.

The file is a unigram model and the steps before it. Those that SentencePiece
takes as well are listed here; a file with any other step is refused.
"""

import base64
import binascii
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from keras_switch.files import CheckpointError, read_json

_MAX_BYTES = 64 << 20
SPACE = "\u2581"  # how a piece writes a space
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")

# Types of a piece and of a model in SentencePiece.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM = 1

# Spaces at the end of a text go, and several count as one. Strip, which
# `transformers` writes, takes more than spaces: U+0085.
_STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
NO_END = {"type": "Replace", "pattern": {"Regex": " +\\z"}, "content": ""}
COLLAPSE = {
    "type": "Replace",
    "pattern": {"Regex": " {2,}"},
    "content": SPACE,
}
_ENDS = (_STRIP, NO_END)
_COLLAPSES = (COLLAPSE, {**COLLAPSE, "content": " "})
_WORDS = {"type": "WhitespaceSplit"}
METASPACE = {
    "type": "Metaspace",
    "replacement": SPACE,
    "prepend_scheme": "always",
    "split": True,
}
# Cuts the name of a byte where it stands in a text: only a character that the
# vocabulary lacks becomes bytes. Before the x, because no piece of mT5 goes
# over that place.
CUT_BYTES = {
    "type": "Split",
    "pattern": {"Regex": "(?<=<0)(?=x[0-9A-F]{2}>)"},
    "behavior": "Isolated",
    "invert": False,
}


def sentinel(index: int) -> str:
    """How a sentinel is written."""
    return f"<extra_id_{index}>"


def is_own_sentinel(piece: str) -> bool:
    """Whether a piece is a sentinel that a model holds itself, as mT5's."""
    return piece.startswith(f"{SPACE}<extra_id_")


def check_added(
    path: Any,
    added: Iterable[tuple[Any, Any]],
    pieces: Sequence[str],
    extra_ids: int,
) -> None:
    """Refuses added tokens that a `SwitchTokenizer` would not have.

    Args:
        path: The file, for the message.
        added: Tokens and their ids.
        pieces: Of the model, without sentinels.
        extra_ids: Number of sentinels.

    Raises:
        CheckpointError: if one is neither a piece nor a sentinel, or has
            another's id.
    """
    size = len(pieces) + extra_ids
    sentinels = {sentinel(i): size - 1 - i for i in range(extra_ids)}
    for token, index in added:
        is_index = isinstance(index, int) and 0 <= index < len(pieces)
        is_piece = is_index and pieces[index] == token
        if not is_piece and sentinels.get(token) != index:
            raise CheckpointError(
                path,
                "an added token",
                f"a piece of the model or one of {extra_ids} sentinels, with "
                "its id",
                f"{token!r} with id {index}",
            )


def field(path: Any, parent: dict, name: str, kind: type) -> Any:
    """A field of a JSON object.

    Raises:
        CheckpointError: if it is missing or of another kind.
    """
    value = parent.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(path, name, f"a {kind.__name__}", repr(value))
    return value


def read_tokenizer_json(path: str | os.PathLike) -> tuple[bytes, int]:
    """Makes the SentencePiece model of a `tokenizer.json`.

    Args:
        path: The file, at most 64 MiB.

    Returns:
        The serialized model without sentinels, and their number.

    Raises:
        CheckpointError: if the file is damaged, or says something that
            SentencePiece does not do.
    """
    content = read_json(path, max_bytes=_MAX_BYTES)
    model = field(path, content, "model", dict)
    if model.get("type") != "Unigram":
        raise CheckpointError(
            path, "model.type", "Unigram", repr(model.get("type"))
        )
    vocabulary = _vocabulary(path, model)
    pieces = [piece for piece, _ in vocabulary]
    added = _added(path, content)
    number = _count_sentinels(pieces)
    if number:
        del vocabulary[-number:], pieces[-number:]
    else:
        number = sum(index >= len(pieces) for _, index, _ in added)
    check_added(path, [token[:2] for token in added], pieces, number)
    special = {index for _, index, is_special in added if is_special}
    types = _types(path, model, pieces, special)
    return _proto(vocabulary, types, _character_map(path, content)), number


def _vocabulary(path, model):
    vocabulary = field(path, model, "vocab", list)
    for entry in vocabulary:
        if not _is_scored_piece(entry):
            raise CheckpointError(
                path,
                "model.vocab",
                "pairs of a piece and its score, a float32",
                repr(entry)[:80],
            )
    return [tuple(entry) for entry in vocabulary]


def _is_scored_piece(entry):
    if not isinstance(entry, list) or len(entry) != 2:
        return False
    piece, score = entry
    if not isinstance(piece, str) or not piece or isinstance(score, bool):
        return False
    try:
        piece.encode("utf-8")
    except UnicodeError:
        return False
    return isinstance(score, int | float) and math.fabs(score) < 3e38


def _added(path, content):
    """`[(token, id, whether it is special)]`."""
    tokens = []
    for token in field(path, content, "added_tokens", list):
        if not isinstance(token, dict):
            raise CheckpointError(
                path, "added_tokens", "objects", repr(token)[:80]
            )
        text, index = field(path, token, "content", str), token.get("id")
        index = field(path, token, "id", int)
        tokens.append((text, index, token.get("special") is True))
    return tokens


def _count_sentinels(pieces):
    """Sentinels at the end of a vocabulary."""
    number = 0
    while number < len(pieces) and pieces[~number] == sentinel(number):
        number += 1
    return number


def _types(path, model, pieces, special):
    unknown = field(path, model, "unk_id", int)
    if not 0 <= unknown < len(pieces):
        raise CheckpointError(
            path, "model.unk_id", f"below {len(pieces)}", unknown
        )
    has_bytes = model.get("byte_fallback") is True

    def type_of(index, piece):
        if index == unknown:
            return UNKNOWN
        if has_bytes and _BYTE_NAME.fullmatch(piece):
            return BYTE
        if is_own_sentinel(piece):
            return USER_DEFINED
        return CONTROL if index in special else NORMAL

    return [type_of(i, piece) for i, piece in enumerate(pieces)]


def _character_map(path, content):
    """The table of a SentencePiece normalizer, if all steps are its own."""
    before = _steps(path, content, "normalizer", "normalizers")
    cuts = _steps(path, content, "pre_tokenizer", "pretokenizers")
    characters = b""
    if before and before[0].get("type") == "Precompiled":
        characters = _decode(path, before.pop(0))
    into_words = cuts[:1] == [_WORDS]
    cuts = cuts[into_words:]
    if cuts[1:] == [CUT_BYTES]:
        cuts.pop()
    if not _are_of_spaces(before, into_words):
        raise CheckpointError(
            path,
            "normalizer",
            "Precompiled, then Strip and Replace or a WhitespaceSplit",
            [step.get("type") for step in before],
        )
    if len(cuts) != 1 or not _is_metaspace(cuts[0]):
        raise CheckpointError(
            path,
            "pre_tokenizer",
            "a Metaspace that begins every text with a space",
            cuts,
        )
    if into_words and not characters:
        # It splits at more than SentencePiece takes for white space then.
        raise CheckpointError(
            path, "normalizer", "Precompiled with a WhitespaceSplit", "none"
        )
    return characters


def _steps(path, content, name, plural):
    step = content.get(name)
    is_sequence = isinstance(step, dict) and step.get("type") == "Sequence"
    steps = field(path, step, plural, list) if is_sequence else [step]
    for step in steps:
        if step is not None and not isinstance(step, dict):
            raise CheckpointError(path, name, "objects", repr(step)[:80])
    return [step for step in steps if step is not None]


def _are_of_spaces(steps, into_words):
    """Whether steps are those that SentencePiece takes on spaces."""
    if into_words:
        return all(step in _ENDS + _COLLAPSES for step in steps)
    return len(steps) == 2 and steps[0] in _ENDS and steps[1] in _COLLAPSES


def _is_metaspace(step):
    # Releases before 2024 have fewer fields or others.
    return (
        step.get("type") == "Metaspace"
        and step.get("replacement") == SPACE
        and step.get("prepend_scheme", "always") == "always"
        and step.get("add_prefix_space", True) is True
        and step.get("split", True) is True
    )


def _decode(path, step):
    text = field(path, step, "precompiled_charsmap", str)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckpointError(
            path, "precompiled_charsmap", "base64", repr(text[:20])
        ) from None


def protocol() -> Any:
    """The module of SentencePiece's message types."""
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError:
        raise ImportError(
            "Tokenizers of transformers need protobuf: pip install protobuf."
        ) from None
    return sentencepiece_model_pb2


def _proto(vocabulary, types, characters):
    model = protocol().ModelProto()
    for (piece, score), kind in zip(vocabulary, types, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    unknown = types.index(UNKNOWN)
    model.trainer_spec.model_type = UNIGRAM
    model.trainer_spec.vocab_size = len(vocabulary)
    model.trainer_spec.byte_fallback = BYTE in types
    model.trainer_spec.unk_id = unknown
    model.trainer_spec.unk_piece = vocabulary[unknown][0]
    model.trainer_spec.bos_id = -1
    model.normalizer_spec.precompiled_charsmap = characters
    return model.SerializeToString(deterministic=True)
