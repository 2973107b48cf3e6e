"""Other models than T5's on a mesh and without: run in a process of its own.

    python -m tests.mesh.models '{"folder": "somewhere"}'

writes `alone.npz` and `mesh.npz` (losses, weights, what was generated, and
what a layer returns outside of `fit`), and for a decoder alone presets of both,
into the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.mesh import training

STEPS = 3
# Of the encoder and of the decoder.
ROUTERS = (
    ("base", "hash"),
    ("noisy_top_k", "loss_free"),
    ("group_limited", "no_token_left_behind"),
    ("soft", "random"),
)


def encoder_decoder(encoder, decoder):
    """Two layers, both sparse."""
    from tests.models import tiny

    return tiny.lm(
        **training.SIZES,
        num_encoder_layers=1,
        num_decoder_layers=1,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        router=router(encoder),
        decoder_router=router(decoder),
    )


def router(name):
    import keras_switch

    if name == "hash":
        return keras_switch.HashRouter(vocabulary_size=152)
    return name


def decoder_alone():
    """Grouped queries, SwiGLU and rotary positions, as Mixtral."""
    from tests.models import tiny

    sizes = {
        **training.SIZES,
        "num_key_value_heads": 2,
        "num_shared_experts": 1,
    }
    return tiny.causal_lm(**sizes)


def train(make):
    """Losses of some steps and of an evaluation, and the weights."""
    import keras

    keras.utils.set_random_seed(0)
    lm = make()
    # Whose steps are in proportion to gradients: Adafactor's are not, and
    # make much of those that are nothing but rounding.
    lm.compile(keras.optimizers.SGD(0.05, name="sgd"))
    x, y, weight = training.data(training.ROWS * STEPS - 5)
    if "token_ids" in lm.input_names:
        x = {n: x[f"decoder_{n}"] for n in lm.input_names}
    options = {"sample_weight": weight, "batch_size": training.ROWS}
    options["verbose"] = 0
    history = lm.fit(x, y, shuffle=False, **options).history
    found = lm.evaluate(x, y, return_dict=True, **options)
    arrays = {f"fit {k}": v for k, v in history.items()}
    arrays |= {f"evaluate {k}": v for k, v in found.items()}
    return lm, x, arrays | training.weights(lm)


def generate(lm, x):
    """Three rows, which no mesh here divides."""
    prompt = {name: array[:3].copy() for name, array in x.items()}
    prompt["padding_mask"][:, 2:] = 0
    return lm.generate(prompt, max_length=6, stop_token_ids=None, truncate=True)


def call_a_layer():
    """Outside of `fit`: rows that the mesh divides, and some that it does not,
    by kernels and statistics that lie on it."""
    import keras

    import keras_switch

    keras.utils.set_random_seed(0)
    shape = training.ROWS, training.LENGTH, training.SIZES["hidden_dim"]
    layer = keras_switch.SwitchLayer(num_experts=8, intermediate_dim=64)
    x = np.random.default_rng(0).normal(size=shape)
    return {"training": layer(x, training=True), "evaluation": layer(x[:3])}


def main(folder, mesh=(4, 2)):
    from keras_switch.ops import layout

    folder = Path(folder)
    for name in ("alone", "mesh"):
        if name == "mesh":
            training.spread(mesh)
        arrays = {"shards": layout.data_shards()}
        for pair in ROUTERS:
            found = train(lambda pair=pair: encoder_decoder(*pair))[2]
            arrays |= {f"{'+'.join(pair)}: {k}": v for k, v in found.items()}
        lm, x, found = train(decoder_alone)
        found |= generate(lm, x)
        arrays |= {f"decoder: {k}": v for k, v in found.items()}
        arrays |= {f"layer: {k}": v for k, v in call_a_layer().items()}
        lm.save_to_preset(folder / name)
        # Still: a layer that is made without a distribution lies nowhere.
        assert layout.data_shards() == arrays["shards"]
        np.savez(folder / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
