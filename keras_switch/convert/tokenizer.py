"""Tokenizer files of `transformers`, in and out."""

import json
import os
import pathlib

import sentencepiece

from keras_switch.convert.read_tokenizer_json import (
    check_added,
    field,
    is_own_sentinel,
    read_tokenizer_json,
    sentinel,
)
from keras_switch.convert.write_tokenizer_json import tokenizer_json
from keras_switch.files import CheckpointError, read_json
from keras_switch.models import SwitchTokenizer

_MODEL, _JSON = "spiece.model", "tokenizer.json"
_CONFIG, _ADDED = "tokenizer_config.json", "added_tokens.json"
_MAX_BYTES = 64 << 20
_MAX_EXTRA_IDS = 10_000
_DEFAULT_EXTRA_IDS = 100  # of T5Tokenizer


def read_proto(folder: str | os.PathLike) -> tuple[bytes, int]:
    """Reads the tokenizer of a folder in the layout of `transformers`.

    Args:
        folder: Holds `spiece.model`, or else `tokenizer.json`, from which the
            SentencePiece model is made again. A `tokenizer_config.json`
            beside `spiece.model` says how many sentinels there are.

    Returns:
        The arguments `proto` and `extra_ids` of a `SwitchTokenizer`. mT5's
        model holds its sentinels itself, and `extra_ids` is 0.

    Raises:
        CheckpointError: if neither file is there, if one is damaged, or if
            it is a tokenizer that SentencePiece is not.
    """
    folder = pathlib.Path(folder)
    if (folder / _MODEL).is_file():
        return _from_model(folder)
    if (folder / _JSON).is_file():
        proto, number = read_tokenizer_json(folder / _JSON)
        _pieces(folder / _JSON, proto)
        return proto, number
    raise CheckpointError(
        folder, "tokenizer", f"there, {_MODEL} or {_JSON}", "neither of them"
    )


def _from_model(folder):
    path = folder / _MODEL
    with open(path, "rb") as file:
        proto = file.read(_MAX_BYTES + 1)
    if len(proto) > _MAX_BYTES:
        raise CheckpointError(
            path, "size", f"at most {_MAX_BYTES} bytes", "more"
        )
    pieces = _pieces(path, proto)
    path = folder / _CONFIG
    config = read_json(path) if path.is_file() else {}
    number = _extra_ids(path, config, pieces)
    added = _decoder(path, config)
    check_added(path, added, pieces, number)
    path = folder / _ADDED
    if path.is_file():
        added = read_json(path).items()
        check_added(path, added, pieces, number)
    return proto, number


def _pieces(path, proto):
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        pieces = processor.id_to_piece(list(range(processor.get_piece_size())))
        reason = "one without pieces"
    except (RuntimeError, ValueError) as error:
        pieces, reason = [], str(error)
    if not pieces:
        raise CheckpointError(path, "content", "a SentencePiece model", reason)
    return pieces


def _extra_ids(path, config, pieces):
    """Number of sentinels to add, as `T5Tokenizer` counts them."""
    own = any(map(is_own_sentinel, pieces))
    number = config.get("extra_ids", 0 if own else _DEFAULT_EXTRA_IDS)
    is_count = isinstance(number, int) and not isinstance(number, bool)
    if not is_count or not 0 <= number <= _MAX_EXTRA_IDS:
        raise CheckpointError(
            path,
            "extra_ids",
            f"an int from 0 to {_MAX_EXTRA_IDS}",
            repr(number),
        )
    return number


def _decoder(path, config):
    """Added tokens and their ids as the configuration lists them."""
    if "added_tokens_decoder" not in config:
        return []
    added = field(path, config, "added_tokens_decoder", dict)
    return [
        (
            token.get("content") if isinstance(token, dict) else token,
            int(index) if index.isdecimal() and len(index) < 10 else index,
        )
        for index, token in added.items()
    ]


def write_tokenizer(
    tokenizer: SwitchTokenizer, folder: str | os.PathLike
) -> None:
    """Writes files from which `transformers.AutoTokenizer` has the same ids.

    With `add_special_tokens=False`, that is: it appends `</s>` otherwise. It
    finds control tokens in a string, too, and normalises it by graphemes; see
    `SwitchTokenizer`. The files are `spiece.model`, `tokenizer.json` and
    `tokenizer_config.json`.

    Args:
        tokenizer: The tokenizer.
        folder: Where to write; made if it is missing.

    Raises:
        ValueError: if `transformers` cannot represent the SentencePiece
            model, and why.
    """
    if tokenizer.proto is None:
        raise ValueError(
            "tokenizer must have a SentencePiece model; received one without."
        )
    content = tokenizer_json(tokenizer.proto, tokenizer.extra_ids)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        _MODEL: tokenizer.proto,
        _JSON: _dump(content),
        _CONFIG: _dump(_configuration(content, tokenizer), indent=2),
    }
    for name, data in files.items():
        partial = folder / f".partial-{name}"
        partial.write_bytes(data)
        os.replace(partial, folder / name)


def _dump(content, indent=None):
    text = json.dumps(
        content, ensure_ascii=False, allow_nan=False, indent=indent
    )
    return f"{text}\n".encode()


def _configuration(content, tokenizer):
    unknown = content["model"]["unk_id"]
    return {
        # T5Tokenizer takes steps of its own, whatever the file says.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "extra_ids": tokenizer.extra_ids,
        "additional_special_tokens": [
            sentinel(i) for i in range(tokenizer.extra_ids)
        ],
        "eos_token": tokenizer.end_token,
        "pad_token": tokenizer.pad_token,
        "unk_token": content["model"]["vocab"][unknown][0],
        "clean_up_tokenization_spaces": False,
    }
