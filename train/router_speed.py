r"""Times a SwitchLayer with each router beside top-1's, and BASE's assignment.

    python train/router_speed.py --router_tokens=4096 --router_experts=64

makes a layer for each router, of the same experts and on the same tokens in one
group, times evaluation and training (forward and backward) in turns and prints
medians, the time over that of `switch`, what each router trains, and where the
tokens went: the largest load over the mean, and what was dropped at a capacity
factor of 1.25. Tokens are random, with a common part that most experts
dislike, so that a router without a remedy is far from balanced.

A second table is of the assignment alone: BASE's of a matrix of scores, beside
the arg max of each row.
"""

from typing import Any

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import flags

_TOKENS = absl_flags.DEFINE_integer(
    "router_tokens", 4096, "Tokens of a call, in one group.", lower_bound=1
)
_EXPERTS = absl_flags.DEFINE_integer(
    "router_experts", 64, "Experts of a layer.", lower_bound=2
)
_HIDDEN = absl_flags.DEFINE_integer(
    "router_hidden_dim", 128, "Width of a token.", lower_bound=1
)
_REPEATS = absl_flags.DEFINE_integer(
    "router_repeats", 9, "Calls of each that count.", lower_bound=1
)
_COMMON = 0.5  # of a token's length, the part all tokens share
_VOCABULARY = 4000


def main() -> None:
    import keras

    from keras_switch_train import measure, results

    measure.use_all_cores()
    keras.utils.set_random_seed(flags.SEED.value)
    size = _TOKENS.value, _EXPERTS.value, _HIDDEN.value
    head = {"what": "router", **measure.header(), "tokens": size[0]}
    head |= {"experts": size[1], "hidden_dim": size[2]}
    print(" | ".join(f"{name} {value}" for name, value in head.items()))
    rows = compare_layers(*size, _REPEATS.value)
    results.show(rows)
    alone = compare_assignments(*size[:2], _REPEATS.value)
    results.show(alone)
    if flags.WORKDIR.value:
        head["assignments"] = alone
        results.write({**head, "rows": rows}, flags.make_workdir())


def run() -> None:
    """The console command."""
    flags.run(main, uses=("backend", "retain_heap", "seed", "workdir"))


def compare_layers(
    tokens: int, experts: int, hidden_dim: int, repeats: int
) -> list[dict[str, Any]]:
    """A row for each router, on the same tokens.

    Args:
        tokens: Of one group.
        experts: Of a layer, 4 times as wide as a token; where a token has two,
            twice as wide, so that it costs as much.
        hidden_dim: Width of a token.
        repeats: Calls that are timed.
    """
    from keras import ops

    from keras_switch.layers.routers import ROUTERS
    from keras_switch_train import measure

    x, dy = (ops.convert_to_tensor(a) for a in _draw(tokens, hidden_dim))
    layers = {
        name: _make(name, router, tokens, experts, hidden_dim)
        for name, router in ROUTERS.items()
    }
    kinds = {"evaluation": (x,), "training": (x, dy)}
    times = {}
    for kind, arguments in kinds.items():
        make = getattr(measure, kind)
        calls = {n: make(layer, *arguments) for n, layer in layers.items()}
        times[kind] = measure.interleaved(calls, repeats)
    rows = []
    for name, layer in layers.items():
        row = {"router": name}
        for kind, timing in times.items():
            row[f"{kind}, ms"] = round(1e3 * timing[name].median, 1)
            ratio = timing[name].median / timing["switch"].median
            row[f"{kind}, over switch"] = round(ratio, 2)
        router = getattr(layer, "layer", layer).router
        row["parameters trained by the router"] = sum(
            int(np.prod(w.shape)) for w in router.trainable_variables
        )
        rows.append(row | _statistics(router.stats))
    return rows


def compare_assignments(
    tokens: int, experts: int, repeats: int
) -> list[dict[str, Any]]:
    """Balanced assignment beside the arg max of each token's scores."""
    from keras import ops

    from keras_switch import BaseRouter
    from keras_switch.ops.assignment import balanced_assignment
    from keras_switch_train import measure

    scores = np.random.default_rng(2).normal(size=(1, tokens, experts))
    scores += np.linspace(0, 2, experts)  # some experts are liked by all
    scores = scores.astype("float32")
    tensor = ops.convert_to_tensor(scores)
    valid = ops.ones((1, tokens), "bool")
    router = BaseRouter()
    limits = router._precision, router._max_rounds
    functions = {
        "arg max": lambda s: ops.argmax(s, axis=-1),
        "balanced, as BaseRouter": lambda s: balanced_assignment(
            s, valid, *limits
        ),
        "balanced, to 0.003": lambda s: balanced_assignment(s, valid),
    }
    compiled = {n: measure.compiled(f) for n, f in functions.items()}
    calls = {n: lambda f=f: f(tensor) for n, f in compiled.items()}
    times = measure.interleaved(calls, repeats)
    found = {n: ops.convert_to_numpy(call())[0] for n, call in calls.items()}
    rows = []
    for name, chosen in found.items():
        load = np.bincount(chosen, minlength=experts)
        total = float(scores[0][np.arange(tokens), chosen].sum())
        rows.append(
            {
                "assignment": name,
                "ms": round(1e3 * times[name].median, 2),
                "least load": int(load.min()),
                "largest load": int(load.max()),
                "score of a token": round(total / tokens, 4),
            }
        )
    return rows


def _draw(tokens, hidden_dim):
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 1, tokens, hidden_dim))
    x += _COMMON * rng.normal(size=hidden_dim)
    return x.astype("float32"), dy.astype("float32")


# Two experts of half the width are as much work as one.
_OF_TWO = ("top_k", "noisy_top_k", "group_limited")


def _make(name, router, tokens, experts, hidden_dim):
    """A built layer; what a router needs besides its defaults is here."""
    import keras_switch

    choices = 2 if name in _OF_TWO else 1
    settings = {
        "hash": {"vocabulary_size": _VOCABULARY},
        "group_limited": {"k": 2, "num_expert_groups": 2, "group_limit": 1},
        "loss_free": {"k": 1},
        "soft": {"slots": -(-tokens // experts)},
    }
    layer = keras_switch.SwitchLayer(
        experts,
        4 * hidden_dim // choices,
        router=router(**settings.get(name, {})),
        capacity_factor=1.25 * choices,
    )
    if name == "hash":
        layer = _with_ids(layer, tokens)
    layer.build((1, tokens, hidden_dim))
    return layer


def _with_ids(layer, tokens):
    """The layer, called as one that needs no ids of its tokens."""
    import keras

    ids = np.random.default_rng(1).integers(0, _VOCABULARY, (1, tokens))

    class WithIds(keras.layers.Layer):
        def build(self, input_shape):
            self.layer = layer
            layer.build(input_shape)

        def call(self, x, training=None):
            return layer(x, training=training, token_ids=ids)

    return WithIds()


def _statistics(stats):
    from keras import ops

    values = ops.convert_to_numpy(stats.value)[: len(stats.names)]
    values = dict(zip(stats.names, map(float, values), strict=True))
    return {
        "max over mean load": round(values["max_mean_load"], 2),
        "dropped": f"{values['dropped_fraction']:.1%}",
    }


if __name__ == "__main__":
    run()
