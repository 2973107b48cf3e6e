"""Strings to the inputs of `SwitchSeq2SeqLM`, and back."""

from typing import Any

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_switch.models.presets import PresetListing, resolve_preset
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

    def generate_postprocess(self, x: dict) -> Any:
        """Strings of generated ids, without padding and special tokens.

        The base class needs TensorFlow for this; here it is numpy.

        Args:
            x: A dict: `decoder_token_ids` and `decoder_padding_mask`, `[T]` or
                `[B, T]`.

        Returns:
            A string, or a list of them.
        """
        ids = np.asarray(ops.convert_to_numpy(x["decoder_token_ids"]))
        keep = np.asarray(ops.convert_to_numpy(x["decoder_padding_mask"]))
        special = self.tokenizer.special_token_ids
        keep = keep.astype(bool) & ~np.isin(ids, special)
        if ids.ndim == 1:
            return self.tokenizer.detokenize(ids[keep].tolist())
        rows = [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
        return [self.tokenizer.detokenize(row) for row in rows]

    def get_config(self) -> dict:
        # The base class leaves the lengths out, and they come back as 1024.
        return {
            **super().get_config(),
            "encoder_sequence_length": self.encoder_sequence_length,
            "decoder_sequence_length": self.decoder_sequence_length,
        }

    @classmethod
    def from_preset(cls, preset: str, *args: Any, **kwargs: Any) -> Any:
        """Makes a preprocessor from a preset.

        Args:
            preset: As in `SwitchBackbone.from_preset`; it must hold a
                tokenizer.
            **kwargs: Arguments to override.
        """
        return super().from_preset(resolve_preset(preset), *args, **kwargs)
