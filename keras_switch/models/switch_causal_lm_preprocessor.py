"""Strings to the inputs of `SwitchCausalLM`, and back."""

from typing import Any

import keras
import keras_hub

from keras_switch.models.preset_folder import PresetFolder
from keras_switch.models.preset_loader import load_preprocessor
from keras_switch.models.preset_writer import preset_to_write
from keras_switch.models.presets import PresetListing, find_preset
from keras_switch.models.switch_causal_backbone import SwitchCausalBackbone
from keras_switch.models.switch_seq_2_seq_lm_preprocessor import (
    check_text_length,
    texts_of,
)
from keras_switch.models.switch_tokenizer import SwitchTokenizer


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchCausalLMPreprocessor(keras_hub.models.CausalLMPreprocessor):
    """Packs strings for training and generation.

    A row is `<pad> tokens... </s> <pad>...`: like T5's decoder it starts from
    padding that counts as a token. Its targets are its input shifted by one,
    with weight 0 on padding. It runs without TensorFlow.

    Args:
        tokenizer: A `SwitchTokenizer`.
        sequence_length: Length of packed rows, `T`.
        add_start_token: Whether a row begins with the start token.
        add_end_token: Whether a row of training ends with `</s>`.
        **kwargs: `name` and the other arguments of `keras.Layer`.

    Call arguments:
        x: A string, or a batch of strings.

    Returns:
        A tuple `(x, y, sample_weight)`: a dict of `token_ids` and
        `padding_mask`, the targets `[B, T]` and their weights `[B, T]`.

    Example:

    ```python
    preprocessor = keras_switch.SwitchCausalLMPreprocessor(
        keras_switch.SwitchTokenizer(proto="vocabulary.spm"),
        sequence_length=64,
    )
    x, y, sample_weight = preprocessor(["A dog walks."])
    ```
    """

    backbone_cls = SwitchCausalBackbone
    tokenizer_cls = SwitchTokenizer
    presets = PresetListing()
    preset_name = "SwitchCausalLMPreprocessor"

    def __init__(
        self,
        tokenizer: SwitchTokenizer,
        sequence_length: int = 1024,
        add_start_token: bool = True,
        add_end_token: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            tokenizer,
            sequence_length=sequence_length,
            add_start_token=add_start_token,
            add_end_token=add_end_token,
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
        sequence_length: int | None = None,
        truncate: bool = True,
    ) -> dict:
        """Packs prompts for generation; they do not end with `</s>`.

        Args:
            x: A string or a batch of strings.
            sequence_length: `T`; by default the layer's.
            truncate: Whether to cut longer texts, or to refuse them.

        Returns:
            A dict of `token_ids` and `padding_mask`, `[B, T]`.

        Raises:
            ValueError: naming the text that is too long.
        """
        longest = sequence_length or self.sequence_length
        if not truncate:
            check_text_length("inputs", x, longest, self.tokenizer)
        return super().generate_preprocess(x, sequence_length=longest)

    def generate_postprocess(self, x: dict) -> Any:
        """Strings of generated ids, without padding and special tokens.

        Args:
            x: A dict: `token_ids` and `padding_mask`, `[T]` or `[B, T]`.

        Returns:
            A string, or a list of them.
        """
        return texts_of(x["token_ids"], x["padding_mask"], self.tokenizer)

    def get_config(self) -> dict:
        # The base class leaves these out, and they come back as defaults.
        names = ("sequence_length", "add_start_token", "add_end_token")
        own = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **own}

    @classmethod
    def from_preset(
        cls, preset: str, *, allow_unverified: bool = False, **kwargs: Any
    ) -> Any:
        """Makes a preprocessor from a preset.

        Args:
            preset: As in `SwitchCausalBackbone.from_preset`; it must hold a
                tokenizer.
            allow_unverified: See there.
            **kwargs: Arguments to override. Folders in the layout of
                `transformers` know no length: 512, if not given.
        """
        folder, layout, built_in = find_preset(preset)
        if layout is not None:
            tokenizer = layout.load_tokenizer(folder)
            return cls(tokenizer, **{"sequence_length": 512, **kwargs})
        folder = PresetFolder(folder, allow_unverified, built_in)
        return load_preprocessor(cls, folder, kwargs)

    def save_to_preset(self, preset_dir: str) -> None:
        """Writes a preset; see `SwitchCausalBackbone.save_to_preset`."""
        with preset_to_write(preset_dir, "preprocessor") as folder:
            super().save_to_preset(folder)
