"""A SentencePiece tokenizer with T5's sentinels."""

import os
import re
import struct
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_switch.layers.validation import check_number
from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_loader import load_tokenizer
from keras_switch.models.preset_writer import preset_to_write
from keras_switch.models.presets import PresetListing, find_preset
from keras_switch.models.switch_backbone import SwitchBackbone
from keras_switch.ops import strings

SPACE = "\u2581"  # how SentencePiece writes a space
_SENTINEL = re.compile(r"<extra_id_\d+>")
# Type of a piece that a SentencePiece model decodes, and never encodes.
_UNUSED = 5


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchTokenizer(keras_hub.tokenizers.SentencePieceTokenizer):
    """SentencePiece, and the sentinels that stand for blanks in a text.

    The SentencePiece model holds ordinary pieces alone. The tokenizer adds
    `extra_ids` sentinels above them, numbered from the top as in T5:
    `<extra_id_i>` is `vocabulary_size() - 1 - i`, so a model of 32,000 pieces
    makes a vocabulary of 32,100. Text is cut at the sentinels and what stands
    between two of them is encoded by itself: spaces around a sentinel are not
    encoded, and what follows it begins a word.

    A model that holds its sentinels itself, as mT5's does, needs
    `extra_ids=0`. SentencePiece finds those where a space or the text's
    beginning is before them, and the text goes on behind them without a
    space.

    Ids are those of `transformers`' `T5Tokenizer`, without the `</s>` that it
    appends, except that:

    - `</s>`, `<pad>` and `<unk>` in a string are text like any other: nobody
      ends a sequence by typing `</s>`. With `special_tokens_in_strings=True`
      they are the tokens, as in `transformers`.
    - A character that the vocabulary lacks becomes bytes where the vocabulary
      has them (mT5's, and those of `train_sentencepiece`). `transformers` 5
      makes it unknown.
    - Strings are normalised by SentencePiece, character by character.
      `transformers` goes by graphemes and loses accents that stand apart from
      their letters; it takes U+0085 for a space, and `<extra_id_0>` in
      full-width letters for a sentinel.
    - Of cuts into pieces that are equally likely (`m mm`, `mm m`), rounding
      decides, in each implementation in its own way.

    Ids from `vocabulary_size()` on, which a backbone with a padded vocabulary
    can produce, detokenize as the unknown piece.

    Args:
        proto: Path of a SentencePiece model, or its bytes. It must have the
            pieces `<pad>` and `</s>`.
        extra_ids: Number of sentinels to add.
        special_tokens_in_strings: Whether the control tokens and the unknown
            token are recognised in strings. Only for strings that no stranger
            wrote.
        **kwargs: Arguments of `keras_hub.tokenizers.SentencePieceTokenizer`.

    Call arguments:
        inputs: A string or a batch of strings; bytes must be UTF-8.

    Returns:
        int32 ids, a list of lists for a batch, as the base class.

    Example:

    ```python
    tokenizer = keras_switch.SwitchTokenizer(proto="vocabulary.spm")
    ids = tokenizer("The <extra_id_0> walks in <extra_id_1> park")
    tokenizer.detokenize(ids)
    ```

    Reference:
        [T5 (Raffel et al., 2020)](https://arxiv.org/abs/1910.10683), 3.1.4
    """

    backbone_cls = SwitchBackbone
    presets = PresetListing()

    def __init__(
        self,
        proto: str | os.PathLike | bytes | None = None,
        extra_ids: int = 100,
        special_tokens_in_strings: bool = False,
        **kwargs: Any,
    ) -> None:
        check_number("extra_ids", extra_ids, whole=True, at_least=0)
        if not isinstance(special_tokens_in_strings, bool):
            raise ValueError(
                "special_tokens_in_strings must be True or False; received "
                f"special_tokens_in_strings={special_tokens_in_strings!r}."
            )
        self.extra_ids = extra_ids
        self.special_tokens_in_strings = special_tokens_in_strings
        # T5 has no start token: its decoder starts from padding.
        self._add_special_token("</s>", "end_token")
        self._add_special_token("<pad>", "start_token")
        self._add_special_token("<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)

    def set_proto(self, proto: str | os.PathLike | bytes | None) -> None:
        """Sets the SentencePiece model, without sentinels; see `Args`."""
        if isinstance(proto, os.PathLike):
            proto = os.fspath(proto)
        # The base class' encoders see parts of a text: none has the ends.
        ends = self.add_bos, self.add_eos
        self.add_bos = self.add_eos = False
        try:
            super().set_proto(proto)
            if self.proto is not None and self.extra_ids:
                self._add_sentinels()
        finally:
            self.add_bos, self.add_eos = ends
        if self.proto is not None:
            self._cut_out_tokens()

    def _add_sentinels(self):
        sentinels = [_sentinel(i) for i in reversed(range(self.extra_ids))]
        held = sorted(set(sentinels) & set(self.get_vocabulary()))
        if held:
            raise ValueError(
                "proto must hold no sentinels, the tokenizer adds them; pass "
                "extra_ids=0 to use its own. Received a proto with "
                f"{', '.join(held[:3])}."
            )
        plain = self.proto
        super().set_proto(plain + _pieces(sentinels))
        # What is saved is the file as it came.
        self.proto = plain

    def _cut_out_tokens(self):
        """Wraps both encoders of the base class: Python's and the graph's."""
        processor = self._sentence_piece_spm
        if self.add_bos and processor.bos_id() < 0:
            raise ValueError(
                "add_bos must be False for a proto without a start token; "
                "received add_bos=True."
            )
        size = self.vocabulary_size()
        special = list(range(size - self.extra_ids, size))
        if self.special_tokens_in_strings:
            kinds = processor.IsControl, processor.IsUnknown
            special += [i for i in range(size) if any(k(i) for k in kinds)]
        tokens = {self.id_to_token(i): i for i in special}
        before = [processor.bos_id()] if self.add_bos else []
        after = [processor.eos_id()] if self.add_eos else []
        if self.compute_dtype == "string":
            tokens = {token: token for token in tokens}
            before, after = (processor.IdToPiece(i) for i in (before, after))
        arguments = tokens, before, after
        self._sentence_piece_spm = _Encoder(processor, *arguments)
        if self._sentence_piece is not None:
            self._sentence_piece = _GraphEncoder(
                self._sentence_piece, *arguments
            )

    def get_vocabulary(self) -> list[str]:
        """All tokens, by id."""
        return [_without_space(token) for token in super().get_vocabulary()]

    def id_to_token(self, id: int) -> str:
        """Token of an id."""
        return _without_space(super().id_to_token(id))

    def token_to_id(self, token: Any) -> int:
        """Id of a token; that of the unknown piece if there is none."""
        index, unknown = super().token_to_id(token), self._unk()
        if index == unknown and _SENTINEL.fullmatch(_text(token)):
            return super().token_to_id(SPACE + _text(token))
        return index

    def tokenize(self, inputs: Any) -> Any:
        """Ids of a string or a batch of strings."""
        try:
            return super().tokenize(inputs)
        except UnicodeError as error:
            # Of bytes, or of the halves of a character that a str can hold.
            raise ValueError(
                f"inputs must be text that UTF-8 can hold; received {error}."
            ) from error

    def detokenize(self, inputs: Any) -> Any:
        """Strings of ids, or of a batch of them."""
        return super().detokenize(self._known(inputs))

    @property
    def graph_tokenizer(self) -> Any:
        """What holds the vocabulary in a graph of TensorFlow, or `None`."""
        return getattr(self._sentence_piece, "_tokenizer", None)

    def _known(self, ids):
        """Replaces ids beyond the vocabulary by that of the unknown piece."""
        if isinstance(ids, list | tuple):
            return [self._known(item) for item in ids]
        if not isinstance(ids, int | np.integer | np.ndarray):
            return ids
        if np.min(ids, initial=0) < 0:
            raise ValueError(f"ids must be at least 0; received {np.min(ids)}.")
        if isinstance(ids, np.ndarray):
            return np.where(ids < self.vocabulary_size(), ids, self._unk())
        return int(ids) if ids < self.vocabulary_size() else self._unk()

    def _unk(self):
        # The id the base class gives to whatever it does not know.
        return super().token_to_id("")

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "extra_ids": self.extra_ids,
            "special_tokens_in_strings": self.special_tokens_in_strings,
        }

    @classmethod
    def from_preset(
        cls, preset: str, *, allow_unverified: bool = False, **kwargs: Any
    ) -> Any:
        """Makes a tokenizer from a preset; see `SwitchBackbone.from_preset`.

        Args:
            preset: See there.
            allow_unverified: See there.
            **kwargs: Arguments to override.
        """
        folder, layout, built_in = find_preset(preset)
        if layout is not None:
            return layout.load_tokenizer(folder, **kwargs)
        folder = PresetFolder(folder, allow_unverified, built_in)
        return load_tokenizer(cls, folder, kwargs)

    def save_to_preset(self, preset_dir: str) -> None:
        """Writes a preset; see `SwitchBackbone.save_to_preset`."""
        with preset_to_write(preset_dir, "tokenizer") as folder:
            super().save_to_preset(folder)


class _Encoder:
    """A SentencePiece processor, and tokens that it does not see.

    Args:
        processor: A `sentencepiece.SentencePieceProcessor`.
        tokens: Ids of the tokens to cut out of a text, by spelling.
        before: Ids to put before a text.
        after: Ids to put after it.
    """

    def __init__(self, processor, tokens, before, after):
        self._processor, self._tokens = processor, tokens
        self._before, self._after = before, after
        pattern = "|".join(map(re.escape, tokens)) or "(?!)"  # or nothing
        self._pattern = re.compile(f"({pattern})")

    def Encode(self, texts, **ends):  # noqa: N802, the name in sentencepiece
        for text in texts:
            text.encode("utf-8")
        rows = [self._pattern.split(text) for text in texts]
        # Every second one is a token.
        plain = [part for row in rows for part in row[::2]]
        encoded = iter(self._processor.Encode(plain))
        return [self._join(row, encoded) for row in rows]

    def _join(self, row, encoded):
        ids = [*self._before]
        for i, part in enumerate(row):
            ids += [self._tokens[part]] if i % 2 else next(encoded)
        return ids + self._after

    def __getattr__(self, name):
        return _of(self, "_processor", name)


class _GraphEncoder:
    """The same for `tensorflow_text.SentencepieceTokenizer`."""

    def __init__(self, tokenizer, tokens, before, after):
        self._tokenizer, self._tokens = tokenizer, tokens
        self._before, self._after = before, after

    def tokenize(self, inputs):
        ids = strings.encode_around(
            inputs, self._tokens, self._tokenizer.tokenize
        )
        return strings.enclose(ids, self._before, self._after)

    def __getattr__(self, name):
        return _of(self, "_tokenizer", name)


def _of(wrapper, inner, name):
    """An attribute of what is wrapped, which a copy may not have yet."""
    return getattr(vars(wrapper).get(inner), name)


def _sentinel(index):
    return f"<extra_id_{index}>"


def _without_space(token):
    is_sentinel = token.startswith(f"{SPACE}<extra_id_")
    return token.removeprefix(SPACE) if is_sentinel else token


def _text(token):
    token = token.numpy() if hasattr(token, "numpy") else token
    return token.decode("utf-8") if isinstance(token, bytes) else str(token)


def _pieces(sentinels):
    """Serialized pieces to append to a SentencePiece model.

    In a protocol buffer, bytes appended to a message append to its repeated
    fields. Their type keeps SentencePiece from finding them in a text, and
    the space before them stands there when they are decoded.
    """
    kind = struct.pack("BB", 3 << 3, _UNUSED)
    return b"".join(
        _field(1, _field(1, (SPACE + token).encode()) + kind)
        for token in sentinels
    )


def _field(number, value):
    # A length below 128 is one byte; pieces here are shorter than 32.
    return bytes([number << 3 | 2, len(value)]) + value
