"""Models after KerasHub's conventions; the only place that imports it."""

from keras_switch.models.beam_sampler import BeamSampler as BeamSampler
from keras_switch.models.switch_backbone import SwitchBackbone as SwitchBackbone
from keras_switch.models.switch_causal_backbone import (
    SwitchCausalBackbone as SwitchCausalBackbone,
)
from keras_switch.models.switch_causal_lm import (
    SwitchCausalLM as SwitchCausalLM,
)
from keras_switch.models.switch_causal_lm_preprocessor import (
    SwitchCausalLMPreprocessor as SwitchCausalLMPreprocessor,
)
from keras_switch.models.switch_seq_2_seq_lm import (
    SwitchSeq2SeqLM as SwitchSeq2SeqLM,
)
from keras_switch.models.switch_seq_2_seq_lm_preprocessor import (
    SwitchSeq2SeqLMPreprocessor as SwitchSeq2SeqLMPreprocessor,
)
from keras_switch.models.switch_tokenizer import (
    SwitchTokenizer as SwitchTokenizer,
)
