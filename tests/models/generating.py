"""A small model that generates, the same on every backend, and its inputs."""

import numpy as np

from tests.models import tiny

SMALL = {"num_encoder_layers": 1, "num_decoder_layers": 1}
# For what does not depend on experts: compiles much faster on JAX.
DENSE = {**SMALL, "encoder_sparse_step": 0, "decoder_sparse_step": 0}
SPARSE = {**SMALL, "encoder_sparse_step": 1, "decoder_sparse_step": 1}
TEXTS = ["the", "the <extra_id_0> walks", "A man", "brown dogs", "milk"]


def lm(preprocessor=None, **arguments):
    """Weights drawn by NumPy; tied ones would repeat the token they read."""
    arguments = {"tie_embedding_weights": False, **DENSE, **arguments}
    lm = tiny.lm(preprocessor, **arguments)
    rng = np.random.default_rng(11)
    for weight in lm.trainable_weights:
        value = rng.normal(size=weight.shape)
        if len(weight.shape) <= 1:
            value = np.ones(weight.shape)  # of a norm
        elif "embeddings" not in weight.path:
            value /= np.sqrt(weight.shape[-2])
        weight.assign(value.astype("float32"))
    return lm


def prompts(rng, lengths, width=5):
    """Inputs whose decoder rows begin with prompts of the given lengths."""
    x = tiny.inputs(rng, len(lengths), 7, width)
    x["decoder_token_ids"] = rng.integers(3, 150, (len(lengths), width))
    x["decoder_padding_mask"] = np.arange(width) < np.array(lengths)[:, None]
    return x
