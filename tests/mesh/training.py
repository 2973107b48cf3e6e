"""Trains a small model on a mesh: run in a process of its own.

    python -m tests.mesh.training '{"mesh": [4, 2], "folder": "somewhere"}'

writes `arrays.npz` (weights, losses, what was generated) and, if asked to, the
text of the compiled step, into the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

SIZES = {
    "num_experts": 8,
    "hidden_dim": 32,
    "intermediate_dim": 64,
    "num_heads": 4,
    "key_value_dim": 8,
    "vocabulary_size": 152,
    "init_scale": 1.0,
}
ROWS, LENGTH, STEPS = 8, 12, 20


def data(rows):
    """Arrays for `fit`; the last batch is not full."""
    from tests.models import tiny

    x, y, weight = [], [], []
    for step in range(-(-rows // ROWS)):
        rng = np.random.default_rng(step)
        x.append(tiny.inputs(rng, ROWS, LENGTH, LENGTH))
        y.append(rng.integers(3, tiny.VOCABULARY, (ROWS, LENGTH)))
        weight.append(x[-1]["decoder_padding_mask"].astype("float32"))
    joined = {k: np.concatenate([part[k] for part in x])[:rows] for k in x[0]}
    return joined, np.concatenate(y)[:rows], np.concatenate(weight)[:rows]


def spread(mesh):
    """Sets the distribution of a mesh `[batch, model]`."""
    import keras

    from keras_switch import sharding

    devices = keras.distribution.list_devices()[: int(np.prod(mesh))]
    names = ("batch", "model")[: len(mesh)]
    device_mesh = keras.distribution.DeviceMesh(mesh, names, devices)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(
            layout_map=sharding.get_layout_map(device_mesh),
            auto_shard_dataset=False,
        )
    )


def make(**arguments):
    import keras

    import keras_switch
    from tests.models import tiny

    keras.utils.set_random_seed(0)
    on_jax = keras.backend.backend() == "jax"
    if not on_jax:
        # What DTensor draws depends on the mesh.
        arguments["router"] = keras_switch.SwitchRouter(exploration="argmax")
    lm = tiny.lm(**{**SIZES, **arguments})
    # Without the time that XLA takes on TensorFlow.
    lm.compile(jit_compile=on_jax)
    return lm


def train(lm, at_end=lambda *_: None):
    """Losses of 20 steps, which a guard watches, and of an evaluation.

    `at_end` is called while the guarded step is still there.
    """
    import keras

    import keras_switch

    x, y, weight = data(ROWS * STEPS - 5)
    options = {"sample_weight": weight, "batch_size": ROWS, "verbose": 0}
    called = [
        keras_switch.StabilityGuard(),
        keras.callbacks.LambdaCallback(on_epoch_end=at_end),
    ]
    history = lm.fit(x, y, shuffle=False, callbacks=called, **options).history
    found = lm.evaluate(x, y, return_dict=True, **options)
    return {f"fit {name}": np.array(v) for name, v in history.items()} | {
        f"evaluate {name}": np.array(v) for name, v in found.items()
    }


def generate(lm, x):
    """Tokens for three rows, which no mesh here divides."""
    prompt = {name: array[:3].copy() for name, array in x.items()}
    prompt["decoder_padding_mask"][:, 2:] = 0
    generated = lm.generate(
        prompt, max_length=6, stop_token_ids=None, truncate=True
    )
    return {f"generate {name}": v for name, v in generated.items()}


def weights(lm):
    from keras_switch.ops import state

    return {
        f"weight {v.path}": state.fetched(v.value)
        for v in [*lm.trainable_variables, *lm.optimizer.variables]
    }


def program():
    """The compiled training step, as text."""
    from keras_switch_train import abstract_step
    from tests.models import tiny

    config = tiny.backbone(**SIZES).get_config()
    del config["name"], config["trainable"]
    batch = abstract_step.Batch(ROWS, LENGTH, LENGTH)
    return abstract_step.lower_step(config, batch).compile().as_text()


def collectives():
    """How often TensorFlow's functions send what."""
    from tensorflow.python.eager import context

    found = {}
    for name in context.context().list_function_names():
        for node in context.context().get_function_def(name).node_def:
            if node.op.startswith("Collective"):
                kinds = found.setdefault(name, {})
                kinds[node.op] = kinds.get(node.op, 0) + 1
    return found


def main(mesh=None, folder="."):
    import keras

    from keras_switch_train.mesh import make_virtual_devices

    make_virtual_devices()
    if mesh:
        spread(mesh)
    lm, sent = make(), {}
    on_jax = keras.backend.backend() == "jax"

    def read(epoch, logs):
        if not on_jax:
            sent.update(collectives())

    arrays = train(lm, read) | weights(lm)
    if on_jax:
        arrays |= generate(lm, data(ROWS)[0])
    lm.save_to_preset(Path(folder) / "preset")
    np.savez(Path(folder) / "arrays.npz", **arrays)
    if mesh and on_jax:
        (Path(folder) / "program.txt").write_text(program())
    if mesh and not on_jax:
        (Path(folder) / "collectives.json").write_text(json.dumps(sent))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
