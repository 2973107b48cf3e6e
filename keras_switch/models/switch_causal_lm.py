"""A sparse decoder with logits: training and generation."""

from typing import Any

import keras
import keras_hub

from keras_switch.models.backbone_arguments import check_known
from keras_switch.models.generation_inputs import CAUSAL_ARRAYS
from keras_switch.models.preset_model import PresetModel
from keras_switch.models.sparse_lm import SparseLM
from keras_switch.models.switch_causal_backbone import SwitchCausalBackbone
from keras_switch.models.switch_causal_lm_preprocessor import (
    SwitchCausalLMPreprocessor,
)
from keras_switch.models.whole_batches import WholeBatches


@keras.saving.register_keras_serializable(package="keras_switch")
class SwitchCausalLM(
    PresetModel, SparseLM, WholeBatches, keras_hub.models.CausalLM
):
    """A sparse decoder that is trained on, and continues, text.

    The decoder's output times the transposed embedding (scaled by `D ** -0.5`)
    or, untied, times a kernel of its own; logits are float32. `fit` takes
    strings if there is a preprocessor, and arrays otherwise; its loss is the
    cross-entropy per real next token plus the auxiliary losses of the routers.
    `generate` decodes with a key-value cache and any KerasHub sampler;
    prompts may be of unequal lengths.

    Args:
        backbone: A `SwitchCausalBackbone`.
        preprocessor: A `SwitchCausalLMPreprocessor`, or `None` if inputs are
            tokenized already.
        **kwargs: `name`, `trainable` and `compile`.

    Call arguments:
        inputs: A dict of int tensors `[B, T]`: `token_ids` and `padding_mask`.

    Returns:
        Logits, float32 `[B, T, vocabulary_size]`.

    Example:

    ```python
    lm = keras_switch.SwitchCausalLM.from_preset("./my_preset")
    lm.fit(["A dog walks in the park."], batch_size=1)
    lm.generate("A dog", max_length=10)
    lm.save_to_preset("./my_preset")
    ```

    Reference:
        [GLaM (Du et al., 2022)](https://arxiv.org/abs/2112.06905)
    """

    backbone_cls = SwitchCausalBackbone
    preprocessor_cls = SwitchCausalLMPreprocessor
    preset_name = "SwitchCausalLM"
    input_names = CAUSAL_ARRAYS

    def __init__(
        self,
        backbone: SwitchCausalBackbone,
        preprocessor: SwitchCausalLMPreprocessor | None = None,
        **kwargs: Any,
    ) -> None:
        known = ("name", "trainable", "compile")
        check_known("SwitchCausalLM", kwargs, known)
        # === Layers ===
        self.backbone = backbone
        self.preprocessor = preprocessor
        # === Functional model ===
        inputs = backbone.input
        outputs = self._logits(backbone(inputs))
        super().__init__(inputs=inputs, outputs=outputs, **kwargs)
