"""Small models of `transformers`, random, in folders."""

import numpy as np
import torch
import transformers

COMMON = {
    "vocab_size": 60,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_heads": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
# Scaled-down shapes of what people have, by name.
SWITCH = {
    "base": {
        "num_layers": 4,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
    },
    "unequal depths": {
        "num_layers": 3,
        "num_sparse_encoder_layers": 1,
        "num_decoder_layers": 2,
        "num_sparse_decoder_layers": 1,
    },
    "all sparse": {
        "num_layers": 2,
        "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
    },
    "none sparse": {
        "num_layers": 2,
        "num_sparse_encoder_layers": 3,
        "num_sparse_decoder_layers": 3,
    },
    "untied": {
        "num_layers": 2,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
        "tie_word_embeddings": False,
    },
    "heads times d_kv": {
        "num_layers": 2,
        "num_heads": 3,
        "d_kv": 4,
        "num_sparse_encoder_layers": 1,
        "num_sparse_decoder_layers": 1,
    },
}
T5 = {
    "t5 relu tied": {"feed_forward_proj": "relu"},
    "t5 gated tied": {"feed_forward_proj": "gated-gelu"},
    "t5 gated unscaled": {
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    },
}


def switch(name="base", seed=0, **arguments):
    """A random `SwitchTransformersForConditionalGeneration`."""
    config = {
        **COMMON,
        "num_experts": 4,
        "expert_capacity": 64,
        **SWITCH[name],
        **arguments,
    }
    config.setdefault("num_decoder_layers", config["num_layers"])
    torch.manual_seed(seed)
    model = transformers.SwitchTransformersForConditionalGeneration(
        transformers.SwitchTransformersConfig(**config)
    )
    if not model.config.tie_word_embeddings:
        # transformers starts from three tables there; published models share.
        for stack in (model.encoder, model.decoder):
            stack.embed_tokens.weight.data.copy_(model.shared.weight.data)
    return _livelier(model)


def t5(name, seed=0):
    """A random `T5ForConditionalGeneration`."""
    torch.manual_seed(seed)
    config = transformers.T5Config(**COMMON, num_layers=2, **T5[name])
    return _livelier(transformers.T5ForConditionalGeneration(config))


def any_model(name):
    return t5(name) if name in T5 else switch(name)


def _livelier(model):
    """Norms that are not 1, and biases that show."""
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "layer_norm" in name:
                values.add_(torch.rand_like(values) - 0.5)
            if "relative_attention_bias" in name:
                values.mul_(8)
    return model.eval()


def save(model, folder, **arguments):
    model.save_pretrained(folder, **arguments)
    return folder


def load(folder):
    """The model `transformers` makes of a folder."""
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def inputs(seed=0, batch_size=3, encoder_length=9, decoder_length=6, left=None):
    """Rows of different lengths; `left` pads the encoder's on the left."""
    rng = np.random.default_rng(seed)
    x = {}
    for stack, length in (
        ("encoder", encoder_length),
        ("decoder", decoder_length),
    ):
        ids = rng.integers(2, COMMON["vocab_size"], (batch_size, length))
        real = np.maximum(length - 2 * np.arange(batch_size), 1)
        mask = np.arange(length) < real[:, None]
        if left and stack == "encoder":
            mask = mask[:, ::-1]
        x[f"{stack}_token_ids"] = np.where(mask, ids, 0).astype("int32")
        x[f"{stack}_padding_mask"] = mask.astype("int32")
    # The start token counts.
    x["decoder_token_ids"][:, 0] = 0
    return x


def outputs(model, x):
    """Encoder output and logits of a model of `transformers`, in numpy."""
    t = {name: torch.tensor(values).long() for name, values in x.items()}
    with torch.no_grad():
        out = model(
            input_ids=t["encoder_token_ids"],
            attention_mask=t["encoder_padding_mask"],
            decoder_input_ids=t["decoder_token_ids"],
            decoder_attention_mask=t["decoder_padding_mask"],
            use_cache=False,
        )
    return out.encoder_last_hidden_state.numpy(), out.logits.numpy()


def generate(model, x, **arguments):
    """What `transformers` generates, without the start token."""
    with torch.no_grad():
        ids = model.generate(
            torch.tensor(x["encoder_token_ids"]).long(),
            attention_mask=torch.tensor(x["encoder_padding_mask"]).long(),
            do_sample=False,
            **arguments,
        )
    return ids.numpy()
