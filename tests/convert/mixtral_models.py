"""Small random models of `transformers`, of model type `mixtral`."""

import numpy as np
import torch
import transformers

VOCABULARY = 60
SHAPES = {
    "mixtral": {},
    "heads times head_dim": {"head_dim": 10, "num_key_value_heads": 1},
    "every head its own": {"num_key_value_heads": 4, "hidden_act": "relu"},
    "three of five": {"num_local_experts": 5, "num_experts_per_tok": 3},
    "tied": {"tie_word_embeddings": True},
    "another base": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}
    },
}


def mixtral(name="mixtral", seed=0, **arguments):
    """A `MixtralForCausalLM` whose norms are not 1, and whose experts are
    chosen by margins that rounding does not cross."""
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "max_position_embeddings": 64,
        **SHAPES[name],
        **arguments,
    }
    torch.manual_seed(seed)
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**config)
    )
    with torch.no_grad():
        for parameter, values in model.named_parameters():
            if "norm" in parameter:
                values.add_(torch.rand_like(values) - 0.5)
            else:
                values.mul_(10)
    return model.eval()


def save(model, folder, **arguments):
    model.save_pretrained(folder, **arguments)
    return folder


def inputs(seed=0, batch_size=3, length=9):
    """Rows of different lengths, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, VOCABULARY, (batch_size, length))
    mask = np.arange(length) < length - 2 * np.arange(batch_size)[:, None]
    return {
        "token_ids": np.where(mask, ids, 0).astype("int32"),
        "padding_mask": mask.astype("int32"),
    }


def logits(model, x):
    """Logits of a model of `transformers`, in numpy."""
    t = {name: torch.tensor(values).long() for name, values in x.items()}
    with torch.no_grad():
        output = model(
            input_ids=t["token_ids"],
            attention_mask=t["padding_mask"],
            use_cache=False,
        )
    return output.logits.numpy()


def generate(model, row, **arguments):
    """What `transformers` makes of one prompt without padding."""
    with torch.no_grad():
        ids = model.generate(
            torch.tensor(row[None]).long(), do_sample=False, **arguments
        )
    return ids.numpy()[0].tolist()
