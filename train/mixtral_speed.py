r"""Times a Mixtral of this library beside KerasHub's, with the same weights.

    python train/mixtral_speed.py --backend=torch --mixtral_experts=8

makes both, checks that their logits and their training losses are the same,
then times a forward pass and a training step of each in turns and prints the
medians. KerasHub's runs every expert on every token, ours those that the token
is sent to: of 8 experts and 2 choices a quarter of the work, and the gap grows
with --mixtral_experts.
"""

import json
import os
import re
from typing import Any

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import flags

_EXPERTS = absl_flags.DEFINE_integer(
    "mixtral_experts", 8, "Experts of a layer; a token has 2.", lower_bound=2
)
_HIDDEN = absl_flags.DEFINE_integer(
    "mixtral_hidden_dim", 256, "Width of the residual.", lower_bound=16
)
_ROWS = absl_flags.DEFINE_integer(
    "mixtral_rows", 4, "Sequences of a batch.", lower_bound=1
)
_LENGTH = absl_flags.DEFINE_integer(
    "mixtral_length", 128, "Tokens of a sequence.", lower_bound=1
)
_REPEATS = absl_flags.DEFINE_integer(
    "mixtral_repeats", 9, "Calls of each that count.", lower_bound=1
)
_LAYERS, _HEADS, _SHARED, _VOCABULARY = 2, 8, 2, 1000


def main() -> None:
    import keras

    from keras_switch import files
    from keras_switch_train import measure, results

    measure.use_all_cores()
    keras.utils.set_random_seed(flags.SEED.value)
    models = make(_EXPERTS.value, _HIDDEN.value)
    x, y = batch(_ROWS.value, _LENGTH.value)
    rows = []
    for what, call in (("forward", forward), ("training step", train)):
        difference = check(models, call, x, y)
        timings = measure.interleaved(
            {n: lambda m=m, c=call: c(m, x, y) for n, m in models.items()},
            _REPEATS.value,
        )
        ours, theirs = timings["keras_switch"], timings["keras_hub"]
        rows.append(
            {
                "what": what,
                "experts": _EXPERTS.value,
                "tokens": x["token_ids"].size,
                "ours_ms": round(1e3 * ours.median, 1),
                "keras_hub_ms": round(1e3 * theirs.median, 1),
                "times_faster": round(theirs.median / ours.median, 2),
                "difference": f"{difference:.1e}",
            }
        )
    print(json.dumps(measure.header()))
    results.show(rows)
    if flags.WORKDIR.value:
        path = os.path.join(flags.make_workdir(), "mixtral_speed.json")
        with files.atomic_write(path) as file:
            content = {"header": measure.header(), "rows": rows}
            file.write_text(json.dumps(content, indent=1), encoding="utf-8")


def run() -> None:
    """The console command."""
    flags.run(main, uses=("backend", "retain_heap", "seed", "workdir"))


def make(num_experts: int, hidden_dim: int) -> dict[str, Any]:
    """Both models, compiled alike, the second with the weights of the first.

    Args:
        num_experts: Experts of a layer.
        hidden_dim: Width of the residual; experts are 3.5 times as wide, as
            in Mixtral 8x7B.
    """
    import keras
    import keras_hub

    import keras_switch

    sizes = {
        "vocabulary_size": _VOCABULARY,
        "num_layers": _LAYERS,
        "hidden_dim": hidden_dim,
        "intermediate_dim": hidden_dim * 7 // 2,
        "num_key_value_heads": _SHARED,
        "num_experts": num_experts,
    }
    # No loss for balance: theirs is another one.
    router = keras_switch.TopKRouter(
        exploration="argmax",
        second_policy="all",
        load_balancing_loss_weight=0.0,
    )
    ours = keras_switch.SwitchCausalBackbone(
        **sizes,
        num_heads=_HEADS,
        sparse_step=1,
        router=router,
        dispatch="dropless",
        activation="gated-silu",
        tie_embedding_weights=False,
        init_scale=1.0,
    )
    theirs = keras_hub.models.MixtralBackbone(
        **sizes,
        num_query_heads=_HEADS,
        sliding_window=None,
        router_aux_loss_coef=0.0,
    )
    _copy(ours, theirs)
    models = {
        "keras_switch": keras_switch.SwitchCausalLM(ours),
        "keras_hub": keras_hub.models.MixtralCausalLM(theirs),
    }
    for model in models.values():
        model.compile(
            keras.optimizers.SGD(0.0),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
        )
    return models


# Theirs, by ours; `_LAYER` stand below `transformer_layer_0/` and so on.
_WHOLE = {
    "token_embedding/embeddings": "token_embedding/embeddings",
    "token_embedding/reverse_embeddings": "token_embedding/reverse_embeddings",
    "layer_norm/scale": "sequence_output_layernorm/scale",
}
_BLOCK = "mixtral_sparse_moe_block"
_EXPERT = f"{_BLOCK}/experts/expert_feedforward"
_LAYER = {
    "self_attention_norm/scale": "self_attention_layernorm/scale",
    "self_attention/query/kernel": "self_attention/query/kernel",
    "self_attention/key/kernel": "self_attention/key/kernel",
    "self_attention/value/kernel": "self_attention/value/kernel",
    "self_attention/output/kernel": "self_attention/attention_output/kernel",
    "feed_forward_norm/scale": "feedforward_layernorm/scale",
    "feed_forward/router/kernel": (
        f"{_BLOCK}/sparse_feedforward_gate_dense/kernel"
    ),
    "feed_forward/experts/wi_0/kernel": f"{_EXPERT}_gate_dense",
    "feed_forward/experts/wi_1/kernel": f"{_EXPERT}_intermediate_dense",
    "feed_forward/experts/wo/kernel": f"{_EXPERT}_output_dense",
}


def _copy(ours, theirs):
    from keras import ops

    # Their block has no name, and Keras numbers what has none.
    unnumbered = re.compile(rf"({_BLOCK})_\d+")
    targets = {unnumbered.sub(r"\1", w.path): w for w in theirs.weights}
    sources = {weight.path: weight for weight in ours.trainable_weights}
    for path, source in sources.items():
        layer, _, name = path.partition("/")
        is_layer = layer.startswith("transformer_layer_")
        other = f"{layer}/{_LAYER[name]}" if is_layer else _WHOLE[path]
        target = targets.pop(other)
        # A copy: JAX would share the array, and a step of one model, which
        # gives its old weights away, would take the other's with them.
        values = np.array(ops.convert_to_numpy(source))
        target.assign(values.reshape(target.shape))
    if targets:
        raise RuntimeError(f"No weights for {', '.join(targets)}.")


def batch(rows: int, length: int) -> tuple[dict, np.ndarray]:
    """Random ids, the last row half padding, and targets."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, _VOCABULARY, (rows, length)).astype("int32")
    mask = np.ones_like(ids)
    mask[-1, (length + 1) // 2 :] = 0
    targets = rng.integers(0, _VOCABULARY, (rows, length)).astype("int32")
    return {"token_ids": ids, "padding_mask": mask}, targets


def forward(model: Any, x: dict, y: np.ndarray) -> np.ndarray:
    """Logits of the tokens that are there."""
    del y
    return model.predict_on_batch(x)[x["padding_mask"] > 0]


def train(model: Any, x: dict, y: np.ndarray) -> np.ndarray:
    """The loss of a step that changes nothing: its rate is 0."""
    weights = x["padding_mask"].astype("float32")
    logs = model.train_on_batch(x, y, weights, return_dict=True)
    return np.array(float(logs["loss"]))


def check(models: dict, call: Any, x: dict, y: np.ndarray) -> float:
    """Refuses to time models that do not compute the same.

    Returns:
        The largest difference.
    """
    ours, theirs = (call(model, x, y) for model in models.values())
    difference = float(np.abs(ours - theirs).max())
    scale = float(np.abs(theirs).max())
    if not difference < 1e-3 * scale:
        raise RuntimeError(
            f"Both models must compute the same; they differ by {difference} "
            f"in numbers of up to {scale}."
        )
    return difference


if __name__ == "__main__":
    run()
