"""A SentencePiece tokenizer with T5's sentinels."""

import struct
from typing import Any

import keras
import keras_hub
import numpy as np

from keras_switch.layers.validation import check_number
from keras_switch.models.presets import PresetListing, resolve_preset
from keras_switch.models.switch_backbone import SwitchBackbone

# Types of a piece in a SentencePiece model: unigram and word models match a
# normal piece, the others cut a user-defined one out of the text.
_NORMAL, _USER_DEFINED = 1, 4


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchTokenizer(keras_hub.tokenizers.SentencePieceTokenizer):
    """SentencePiece, and the sentinels that stand for blanks in a text.

    The SentencePiece model holds ordinary pieces alone. The tokenizer adds
    `extra_ids` sentinels above them, numbered from the top as in T5:
    `<extra_id_i>` is `vocabulary_size() - 1 - i`, so a model of 32,000 pieces
    makes a vocabulary of 32,100. A space before a sentinel belongs to it.

    Ids from `vocabulary_size()` on, which a backbone with a padded vocabulary
    can produce, detokenize as the unknown piece.

    Args:
        proto: Path of a SentencePiece model, or its bytes. It must have the
            pieces `<pad>` and `</s>`.
        extra_ids: Number of sentinels.
        **kwargs: Arguments of `keras_hub.tokenizers.SentencePieceTokenizer`.

    Call arguments:
        inputs: A string or a batch of strings.

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
        proto: str | bytes | None = None,
        extra_ids: int = 100,
        **kwargs: Any,
    ) -> None:
        check_number("extra_ids", extra_ids, whole=True, at_least=0)
        self.extra_ids = extra_ids
        # T5 has no start token: its decoder starts from padding.
        self._add_special_token("</s>", "end_token")
        self._add_special_token("<pad>", "start_token")
        self._add_special_token("<pad>", "pad_token")
        super().__init__(proto=proto, **kwargs)

    def set_proto(self, proto: str | bytes | None) -> None:
        """Sets the SentencePiece model, without sentinels; see `Args`."""
        self._num_pieces = None
        super().set_proto(proto)
        if self.proto is None:
            return
        pieces, plain = super().vocabulary_size(), self.proto
        sentinels = [_sentinel(i) for i in reversed(range(self.extra_ids))]
        held = sorted(set(sentinels) & set(super().get_vocabulary()))
        if held:
            raise ValueError(
                "proto must hold no sentinels, the tokenizer adds them; pass "
                "extra_ids=0 to use its own. Received a proto with "
                f"{', '.join(held[:3])}."
            )
        for kind in (_NORMAL, _USER_DEFINED) if self.extra_ids else ():
            super().set_proto(plain + _extension(sentinels, kind))
            if list(super().tokenize(sentinels[0])) == [pieces]:
                break
        # What is saved is the file as it came.
        self.proto = plain
        self._num_pieces = pieces

    def vocabulary_size(self) -> int:
        """Pieces and sentinels."""
        size = super().vocabulary_size()
        # The extended model spells each sentinel twice.
        return size if self._num_pieces is None else size - self.extra_ids

    def get_vocabulary(self) -> list[str]:
        """All tokens, by id."""
        tokens = super().get_vocabulary()[: self.vocabulary_size()]
        return [_without_space(token) for token in tokens]

    def id_to_token(self, id: int) -> str:
        """Token of an id."""
        return _without_space(super().id_to_token(id))

    def token_to_id(self, token: Any) -> int:
        """Id of a token; that of the unknown piece if there is none."""
        return self._fold(super().token_to_id(token))

    def tokenize(self, inputs: Any) -> Any:
        """Ids of a string or a batch of strings."""
        return self._fold(super().tokenize(inputs))

    def detokenize(self, inputs: Any) -> Any:
        """Strings of ids, or of a batch of them."""
        return super().detokenize(self._known(inputs))

    def _fold(self, ids):
        """Gives the two spellings of a sentinel one id.

        By arithmetic, so that it serves lists, arrays and the ragged tensors
        of a `tf.data` pipeline alike.
        """
        if self._num_pieces is None or isinstance(ids, str):
            return ids
        if isinstance(ids, list | tuple):
            return [self._fold(item) for item in ids]
        if str(getattr(ids, "dtype", "int")).count("int") == 0:
            return ids
        return ids - self.extra_ids * (ids // self.vocabulary_size())

    def _known(self, ids):
        """Replaces ids beyond the vocabulary by that of the unknown piece."""
        if isinstance(ids, list | tuple):
            return [self._known(item) for item in ids]
        if isinstance(ids, int | np.integer):
            return int(ids) if ids < self.vocabulary_size() else self._unk()
        if isinstance(ids, np.ndarray):
            return np.where(ids < self.vocabulary_size(), ids, self._unk())
        return ids

    def _unk(self):
        # The id the base class gives to whatever it does not know.
        return super().token_to_id("")

    def get_config(self) -> dict:
        return {**super().get_config(), "extra_ids": self.extra_ids}

    @classmethod
    def from_preset(cls, preset: str, *args: Any, **kwargs: Any) -> Any:
        """Makes a tokenizer from a preset; see `SwitchBackbone.from_preset`."""
        return super().from_preset(resolve_preset(preset), *args, **kwargs)


def _sentinel(index):
    return f"<extra_id_{index}>"


def _without_space(token):
    is_sentinel = token.startswith("\u2581<extra_id_")
    return token[1:] if is_sentinel else token


def _extension(sentinels, kind):
    """Serialized pieces to append to a SentencePiece model.

    In a protocol buffer, bytes appended to a message append to its repeated
    fields. Each sentinel comes twice: with the space before it, as it usually
    stands, then without. The score makes a unigram model prefer it, and the
    spelling with the space, to any other cut.
    """
    spaced = [(f"\u2581{token}", 1e4) for token in sentinels]
    bare = [(token, 5e3) for token in sentinels]
    return b"".join(
        _field(1, _field(1, token.encode()) + _score_and_type(score, kind))
        for token, score in spaced + bare
    )


def _field(number, value):
    # A length below 128 is one byte; pieces here are shorter than 32.
    return bytes([number << 3 | 2, len(value)]) + value


def _score_and_type(score, kind):
    return struct.pack("<BfBB", 2 << 3 | 5, score, 3 << 3, kind)
