"""KerasHub's own tests of a backbone, a tokenizer, a preprocessor, a task.

They are not public, and need TensorFlow and grain: where any of it is
missing, or has moved, this file is skipped. No other file may import
`keras_hub.src`.
"""

import keras
import numpy as np
import pytest

from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchCausalLMPreprocessor,
    SwitchSeq2SeqLM,
    SwitchSeq2SeqLMPreprocessor,
    SwitchTokenizer,
)
from tests.models import tiny

test_case = pytest.importorskip("keras_hub.src.tests.test_case")

SMALL = {
    **tiny.ARGUMENTS,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "encoder_sparse_step": 1,
}
DENSE = {**SMALL, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
SHAPES = {
    "encoder_sequence_output": (2, 4, 16),
    "decoder_sequence_output": (2, 3, 16),
}


def token_inputs():
    # KerasHub cuts all inputs to lengths 2, 3 and 4.
    x = tiny.inputs(np.random.default_rng(5), 2, 4, 3)
    return {name: keras.ops.convert_to_tensor(v) for name, v in x.items()}


def causal_inputs():
    x = tiny.causal_inputs(np.random.default_rng(5), 2, 4)
    return {name: keras.ops.convert_to_tensor(v) for name, v in x.items()}


@pytest.mark.slow
class KerasHubComplianceTest(test_case.TestCase):
    def test_backbone(self):
        # Precision is checked on the dense model: KerasHub wants every
        # weight in bfloat16 under that policy, and a router's stay float32.
        self.run_backbone_test(
            cls=SwitchBackbone,
            init_kwargs=SMALL,
            input_data=token_inputs(),
            expected_output_shape=SHAPES,
            variable_length_data=[token_inputs()],
            run_mixed_precision_check=False,
        )

    def test_precision(self):
        self.run_precision_test(SwitchBackbone, dict(DENSE), token_inputs())

    def test_saving(self):
        self.run_model_saving_test(
            cls=SwitchBackbone, init_kwargs=SMALL, input_data=token_inputs()
        )

    def test_tokenizer(self):
        tokenizer = SwitchTokenizer(proto=tiny.proto())
        texts = ["the <extra_id_0> walks", "<extra_id_1>"]
        self.run_preprocessing_layer_test(
            cls=SwitchTokenizer,
            init_kwargs={"proto": tiny.proto()},
            input_data=texts,
            expected_output=[list(map(int, tokenizer(t))) for t in texts],
            expected_detokenize_output=texts,
        )

    def test_preprocessor(self):
        preprocessor = tiny.preprocessor()
        text = {"encoder_text": ["the dog"], "decoder_text": ["the earth"]}
        # KerasHub reads this name too.
        self.init_kwargs = {
            "tokenizer": preprocessor.tokenizer,
            "encoder_sequence_length": 8,
            "decoder_sequence_length": 6,
        }
        self.run_preprocessor_test(
            cls=SwitchSeq2SeqLMPreprocessor,
            init_kwargs=self.init_kwargs,
            input_data=text,
            expected_output=preprocessor(text),
            token_id_key="decoder_token_ids",
        )

    def test_causal_backbone(self):
        self.run_backbone_test(
            cls=SwitchCausalBackbone,
            init_kwargs={**tiny.CAUSAL, "sparse_step": 1},
            input_data=causal_inputs(),
            expected_output_shape=(2, 4, 16),
            variable_length_data=[causal_inputs()],
            run_mixed_precision_check=False,
        )

    def test_causal_precision(self):
        arguments = {**tiny.CAUSAL, "sparse_step": 0}
        self.run_precision_test(
            SwitchCausalBackbone, arguments, causal_inputs()
        )

    def test_causal_saving(self):
        self.run_model_saving_test(
            cls=SwitchCausalBackbone,
            init_kwargs={**tiny.CAUSAL, **tiny.FAMILIES["fairseq"]},
            input_data=causal_inputs(),
        )

    def test_causal_preprocessor(self):
        preprocessor = tiny.causal_preprocessor()
        self.init_kwargs = {
            "tokenizer": preprocessor.tokenizer,
            "sequence_length": 10,
        }
        self.run_preprocessor_test(
            cls=SwitchCausalLMPreprocessor,
            init_kwargs=self.init_kwargs,
            input_data=["the dog"],
            expected_output=preprocessor(["the dog"]),
        )

    def test_causal_task(self):
        self.run_task_test(
            cls=SwitchCausalLM,
            init_kwargs={
                "preprocessor": tiny.causal_preprocessor(),
                "backbone": SwitchCausalBackbone(**tiny.CAUSAL),
            },
            train_data=(["the dog walks", "A man"],),
            expected_output_shape=(2, 10, tiny.VOCABULARY),
        )

    def test_task(self):
        self.run_task_test(
            cls=SwitchSeq2SeqLM,
            init_kwargs={
                "preprocessor": tiny.preprocessor(),
                "backbone": SwitchBackbone(**SMALL),
            },
            train_data=(
                {
                    "encoder_text": ["the dog walks", "A man"],
                    "decoder_text": ["the park", "the earth"],
                },
            ),
            expected_output_shape=(2, 6, tiny.VOCABULARY),
        )
