"""A small model, its inputs and its vocabulary, for the tests of models."""

import functools
import io

import numpy as np
import sentencepiece

from keras_switch.models import (
    SwitchBackbone,
    SwitchCausalBackbone,
    SwitchCausalLM,
    SwitchCausalLMPreprocessor,
    SwitchSeq2SeqLM,
    SwitchSeq2SeqLMPreprocessor,
    SwitchTokenizer,
)

# 50 pieces and 100 sentinels.
VOCABULARY = 150
ARGUMENTS = {
    "vocabulary_size": VOCABULARY,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "key_value_dim": 6,
    "num_experts": 4,
    "dropout": 0.0,
    # Larger than the default, so that a wrong term shows.
    "init_scale": 2.0,
}
CAUSAL = {
    "vocabulary_size": VOCABULARY,
    "num_layers": 2,
    "num_heads": 4,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "key_value_dim": 6,
    "num_experts": 4,
    "init_scale": 2.0,
}
# The shapes of the models that the arguments make.
FAMILIES = {
    "glam": {
        "position": "relative",
        "activation": "gated-gelu",
        "expert_activation": "relu",
        "router": "top_k",
        "sparse_step": [0],
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 9,
    },
    "fairseq": {
        "position": "sinusoidal",
        "norm": "layer",
        "use_bias": True,
        "router": "top_k",
        "num_key_value_heads": 4,
    },
    "mixtral": {
        "position": "rotary",
        "num_key_value_heads": 2,
        "activation": "gated-silu",
        "router": "top_k",
        "sparse_step": 1,
        "tie_embedding_weights": False,
    },
    "gpt": {"position": "learned", "max_sequence_length": 24},
}
TEXTS = (
    "The quick brown fox jumped over the lazy dog.",
    "A man walks in the park with a small brown dog.",
    "the earth is round, and the moon goes round the earth",
    "small dogs walk over lazy men in brown parks; quick men jump",
    "fresh bread and warm milk wait on the kitchen table",
)


def backbone(**arguments):
    return SwitchBackbone(**{**ARGUMENTS, **arguments})


def lm(preprocessor=None, **arguments):
    return SwitchSeq2SeqLM(backbone(**arguments), preprocessor)


def causal_backbone(family="mixtral", **arguments):
    """A backbone of random weights, with norms and biases that show."""
    backbone = SwitchCausalBackbone(
        **{**CAUSAL, **FAMILIES[family], **arguments}
    )
    rng = np.random.default_rng(3)
    for weight in backbone.trainable_weights:
        if len(weight.shape) == 1 or weight.path.endswith("bias"):
            shift = rng.normal(size=weight.shape, scale=0.3)
            weight.assign_add(shift.astype("float32"))
    return backbone


def causal_lm(family="mixtral", preprocessor=None, **arguments):
    return SwitchCausalLM(causal_backbone(family, **arguments), preprocessor)


def causal_preprocessor(**arguments):
    tokenizer = SwitchTokenizer(proto=proto())
    return SwitchCausalLMPreprocessor(
        tokenizer, **{"sequence_length": 10, **arguments}
    )


def causal_inputs(rng, batch_size=3, length=7):
    """Rows of different lengths; the first one is full."""
    ids = rng.integers(3, VOCABULARY, (batch_size, length))
    real = np.maximum(length - 2 * np.arange(batch_size), 1)
    mask = np.arange(length) < real[:, None]
    ids = np.where(mask, ids, 0)
    return {
        "token_ids": ids.astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


@functools.cache
def proto(model_type="unigram", pieces=50):
    """A SentencePiece model without sentinels."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 10),
        model_writer=model,
        vocab_size=pieces,
        model_type=model_type,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        hard_vocab_limit=False,
        minloglevel=9,
    )
    return model.getvalue()


def preprocessor(**arguments):
    lengths = {"encoder_sequence_length": 8, "decoder_sequence_length": 6}
    tokenizer = SwitchTokenizer(proto=proto())
    return SwitchSeq2SeqLMPreprocessor(tokenizer, **{**lengths, **arguments})


def inputs(rng, batch_size=2, encoder_length=7, decoder_length=5):
    """Rows of different lengths; the first one is full."""
    x = {}
    for name, length in (
        ("encoder", encoder_length),
        ("decoder", decoder_length),
    ):
        ids = rng.integers(3, VOCABULARY, (batch_size, length))
        real = np.maximum(length - np.arange(batch_size), 1)
        mask = np.arange(length) < real[:, None]
        x[f"{name}_token_ids"] = np.where(mask, ids, 0).astype("int32")
        x[f"{name}_padding_mask"] = mask.astype("int32")
    return x


def logits(lm, x):
    """Logits of tokens, also if the model has a preprocessor."""
    return SwitchSeq2SeqLM(lm.backbone).predict_on_batch(x)
