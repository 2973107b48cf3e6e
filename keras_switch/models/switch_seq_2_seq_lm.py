"""Switch Transformers with logits: training and generation."""

from typing import Any

import keras
import keras_hub

from keras_switch.models.backbone_arguments import check_known
from keras_switch.models.fill_mask import fill_blanks
from keras_switch.models.generation_inputs import ARRAYS
from keras_switch.models.preset_model import PresetModel
from keras_switch.models.sparse_lm import SparseLM
from keras_switch.models.switch_backbone import SwitchBackbone
from keras_switch.models.switch_seq_2_seq_lm_preprocessor import (
    SwitchSeq2SeqLMPreprocessor,
)
from keras_switch.models.whole_batches import WholeBatches


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchSeq2SeqLM(
    PresetModel, SparseLM, WholeBatches, keras_hub.models.Seq2SeqLM
):
    """A Switch Transformer that is trained on, and generates, text.

    The decoder's output times the transposed embedding (scaled by `D ** -0.5`)
    or, untied, times a kernel of its own; logits are float32. `fit` takes
    strings if there is a preprocessor, and arrays otherwise; its loss is the
    cross-entropy per real target token plus the auxiliary losses of the
    routers. `generate` decodes with a key-value cache and any KerasHub
    sampler.

    Args:
        backbone: A `SwitchBackbone`.
        preprocessor: A `SwitchSeq2SeqLMPreprocessor`, or `None` if inputs are
            tokenized already.
        **kwargs: `name`, `trainable` and `compile`.

    Call arguments:
        inputs: A dict of int tensors: `encoder_token_ids` and
            `encoder_padding_mask`, `[B, S]`; `decoder_token_ids` and
            `decoder_padding_mask`, `[B, T]`.

    Returns:
        Logits, float32 `[B, T, vocabulary_size]`.

    Example:

    ```python
    lm = keras_switch.SwitchSeq2SeqLM.from_preset("./my_preset")
    lm.fit(
        {
            "encoder_text": ["The <extra_id_0> walks in the park."],
            "decoder_text": ["<extra_id_0> dog"],
        },
        batch_size=1,
    )
    lm.generate("The <extra_id_0> walks in the park.", max_length=10)
    lm.save_to_preset("./my_preset")
    ```

    Reference:
        [Switch Transformers (Fedus et al., 2022)](https://arxiv.org/abs/2101.03961)
    """

    backbone_cls = SwitchBackbone
    preprocessor_cls = SwitchSeq2SeqLMPreprocessor
    preset_name = "SwitchSeq2SeqLM"
    input_names = ARRAYS

    def __init__(
        self,
        backbone: SwitchBackbone,
        preprocessor: SwitchSeq2SeqLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
        known = ("name", "trainable", "compile")
        check_known("SwitchSeq2SeqLM", kwargs, known)
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        # === Functional model ===
        inputs = backbone.input
        outputs = self._logits(backbone(inputs)["decoder_sequence_output"])
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)

    def fill_mask(
        self, texts: Any, missing: str = "...", **kwargs: Any
    ) -> str | list[str]:
        """Fills in the blanks of texts, `<extra_id_0>` and so on.

        Blanks are numbered from 0 in the order they stand in, as in training,
        whatever their numbers were: the same one twice is two blanks.

        Args:
            texts: A string or a batch of strings. One without blanks comes
                back as it is.
            missing: Stands where the model has nothing for a blank.
            **kwargs: Arguments of `generate`.

        Returns:
            A string or a list of them.

        Raises:
            ValueError: if there is no preprocessor, or a text has more blanks
                than the tokenizer has sentinels; or as `generate`.
        """
        return fill_blanks(self, texts, missing, **kwargs)
