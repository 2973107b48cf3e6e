"""Strings to the inputs of `SwitchSeq2SeqLM`, and back."""

from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_loader import load_preprocessor
from keras_switch.models.preset_writer import preset_to_write
from keras_switch.models.presets import PresetListing, find_preset
from keras_switch.models.switch_backbone import SwitchBackbone
from keras_switch.models.switch_tokenizer import SwitchTokenizer


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchSeq2SeqLMPreprocessor(keras_hub.models.T5Seq2SeqLMPreprocessor):
    """Packs strings for training and generation.

    The encoder reads `tokens... </s> <pad>...`; the decoder starts from
    padding, `<pad> tokens... </s> <pad>...`, and its targets are its input
    shifted by one, with weight 0 on padding. It runs without TensorFlow.

    Args:
        tokenizer: A `SwitchTokenizer`.
        encoder_sequence_length: Length of packed encoder inputs, `S`.
        decoder_sequence_length: Length of packed decoder inputs, `T`.
        **kwargs: `name` and the other arguments of `keras.Layer`.

    Call arguments:
        x: A dict of strings, or batches of them: `encoder_text` and
            `decoder_text`.

    Returns:
        A tuple `(x, y, sample_weight)`: a dict of the backbone's four inputs,
        the targets `[B, T]` and their weights `[B, T]`.

    Example:

    ```python
    preprocessor = keras_switch.SwitchSeq2SeqLMPreprocessor(
        keras_switch.SwitchTokenizer(proto="vocabulary.spm"),
        encoder_sequence_length=64,
        decoder_sequence_length=32,
    )
    x, y, sample_weight = preprocessor(
        {
            "encoder_text": ["The <extra_id_0> walks."],
            "decoder_text": ["<extra_id_0> dog"],
        }
    )
    ```
    """

    backbone_cls = SwitchBackbone
    tokenizer_cls = SwitchTokenizer
    presets = PresetListing()
    preset_name = "SwitchSeq2SeqLMPreprocessor"

    def __init__(
        self,
        tokenizer: SwitchTokenizer,
        encoder_sequence_length: int = 1024,
        decoder_sequence_length: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tokenizer,
            encoder_sequence_length=encoder_sequence_length,
            decoder_sequence_length=decoder_sequence_length,
            **kwargs,
        )
        self._build_early()

    def load_preset_assets(self, preset: str) -> None:
        """Loads the vocabulary of a preset."""
        super().load_preset_assets(preset)
        self._build_early()

    def _build_early(self):
        # Left to the first call, `build` races in the threads of a pipeline.
        if getattr(self.tokenizer, "proto", None) is not None:
            super().build(None)

    def generate_preprocess(
        self,
        x: Any,
        *,
        encoder_sequence_length: int | None = None,
        decoder_sequence_length: int | None = None,
        sequence_length: int | None = None,
        truncate: bool = True,
    ) -> dict:
        """Packs strings for generation; see the base class.

        Args:
            x: A string, a batch of strings, or a dict with `encoder_text` and
                `decoder_text`.
            encoder_sequence_length: `S`; by default the layer's.
            decoder_sequence_length: `T`; by default the layer's.
            sequence_length: Another name of `decoder_sequence_length`.
            truncate: Whether to cut longer texts, or to refuse them.

        Returns:
            A dict of the backbone's four inputs, `[B, S]` and `[B, T]`.

        Raises:
            ValueError: naming the text that is too long.
        """
        lengths = {
            "encoder_text": encoder_sequence_length
            or self.encoder_sequence_length,
            "decoder_text": decoder_sequence_length
            or sequence_length
            or self.decoder_sequence_length,
        }
        if not truncate:
            texts = x if isinstance(x, dict) else {"encoder_text": x}
            for name, text in texts.items():
                check_text_length(name, text, lengths[name], self.tokenizer)
        return super().generate_preprocess(
            x,
            encoder_sequence_length=lengths["encoder_text"],
            decoder_sequence_length=lengths["decoder_text"],
        )

    def generate_postprocess(self, x: dict) -> Any:
        """Strings of generated ids, without padding and special tokens.

        The base class needs TensorFlow for this; here it is numpy.

        Args:
            x: A dict: `decoder_token_ids` and `decoder_padding_mask`, `[T]` or
                `[B, T]`.

        Returns:
            A string, or a list of them.
        """
        ids, mask = x["decoder_token_ids"], x["decoder_padding_mask"]
        return texts_of(ids, mask, self.tokenizer)

    def get_config(self) -> dict:
        # The base class leaves the lengths out, and they come back as 1024.
        return {
            **super().get_config(),
            "encoder_sequence_length": self.encoder_sequence_length,
            "decoder_sequence_length": self.decoder_sequence_length,
        }

    @classmethod
    def from_preset(
        cls, preset: str, *, allow_unverified: bool = False, **kwargs: Any
    ) -> Any:
        """Makes a preprocessor from a preset.

        Args:
            preset: As in `SwitchBackbone.from_preset`; it must hold a
                tokenizer.
            allow_unverified: See there.
            **kwargs: Arguments to override. Folders in the layout of
                `transformers` know no lengths: 512 and 128, if not given.
        """
        folder, layout, built_in = find_preset(preset)
        if layout is not None:
            lengths = {
                "encoder_sequence_length": 512,
                "decoder_sequence_length": 128,
            }
            tokenizer = layout.load_tokenizer(folder)
            return cls(tokenizer, **{**lengths, **kwargs})
        folder = PresetFolder(folder, allow_unverified, built_in)
        return load_preprocessor(cls, folder, kwargs)

    def save_to_preset(self, preset_dir: str) -> None:
        """Writes a preset; see `SwitchBackbone.save_to_preset`."""
        with preset_to_write(preset_dir, "preprocessor") as folder:
            super().save_to_preset(folder)


def check_text_length(
    name: str, texts: Any, longest: int, tokenizer: SwitchTokenizer
) -> None:
    """Refuses texts of too many tokens.

    Args:
        name: What the texts are called.
        texts: A string or a batch of strings.
        longest: Most tokens, counting the special one that each row has:
            `</s>` behind a text, `<pad>` before a prompt.
        tokenizer: Says how many they are.

    Raises:
        ValueError: naming the text.
    """
    texts = [texts] if isinstance(texts, str | bytes) else list(texts)
    tokens = [len(ids) + 1 for ids in tokenizer(texts)]
    for row, count in enumerate(tokens):
        if count > longest:
            raise ValueError(
                f"{name} must have at most {longest} tokens; received "
                f"{count} in row {row}. truncate=True cuts longer ones."
            )


def texts_of(ids: Any, mask: Any, tokenizer: SwitchTokenizer) -> Any:
    """Strings of ids, without padding and special tokens.

    Args:
        ids: int `[T]` or `[B, T]`.
        mask: bool, of the same shape.
        tokenizer: Knows the strings.

    Returns:
        A string, or a list of them.
    """
    ids = np.asarray(ops.convert_to_numpy(ids))
    keep = np.asarray(ops.convert_to_numpy(mask)).astype(bool)
    keep &= ~np.isin(ids, tokenizer.special_token_ids)
    if ids.ndim == 1:
        return tokenizer.detokenize(ids[keep].tolist())
    rows = [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
    return [tokenizer.detokenize(row) for row in rows]
