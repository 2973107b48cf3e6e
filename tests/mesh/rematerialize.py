"""Training with and without `rematerialize`: run in a process of its own.

    python -m tests.mesh.rematerialize '{"folder": "somewhere"}'

trains in mixed_bfloat16 on a mesh of 4, and writes `kept.npz` and `again.npz`
(losses, weights, statistics) into the folder.
"""

import json
import sys
from pathlib import Path

import numpy as np

from tests.mesh import training


def trained(**arguments):
    """Three steps with dropout, jitter, and losses of two kinds of router."""
    import keras

    import keras_switch
    from tests.models import tiny

    keras.utils.set_random_seed(3)
    router = keras_switch.SwitchRouter(
        load_balancing_loss_weight=0.5, z_loss_weight=0.1
    )
    lm = tiny.lm(
        vocabulary_size=152,
        dropout=0.2,
        expert_dropout=0.4,
        router=router,
        decoder_router="loss_free",
        num_encoder_layers=1,
        num_decoder_layers=1,
        encoder_sparse_step=1,
        decoder_sparse_step=1,
        dtype="mixed_bfloat16",
        **arguments,
    )
    lm.compile(keras.optimizers.SGD(0.1, name="sgd"))
    x = tiny.inputs(np.random.default_rng(0), batch_size=4)
    y, weight = x["decoder_token_ids"], x["decoder_padding_mask"]
    logs = [
        lm.train_on_batch(x, y, sample_weight=weight, return_dict=True)
        for _ in range(3)
    ]
    arrays = {
        f"{i} {k}": v for i, log in enumerate(logs) for k, v in log.items()
    }
    # Random states are counted through: models made later have other names.
    for i, variable in enumerate(lm.variables):
        arrays[f"variable {i}"] = keras.ops.convert_to_numpy(variable)
    return arrays


def main(folder):
    training.spread((2, 2))
    for name, arguments in (("kept", {}), ("again", {"rematerialize": True})):
        np.savez(Path(folder) / f"{name}.npz", **trained(**arguments))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
