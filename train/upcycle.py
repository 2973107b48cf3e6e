r"""Makes a sparse model of a trained dense one.

    python train/upcycle.py --preset=runs/t5_mini/preset \
        --output=runs/upcycled --num_experts=8

copies the dense feed-forward of every second layer to all experts of a sparse
layer, draws routers anew and writes a preset that --preset of the other
binaries takes; train it on with pretrain. It prints the parameters of both
models, and on a few batches of random tokens their losses and the largest
difference of a logit.

What to expect: with --router=switch the sparse model starts off worse, because
its gates are about one over the number of experts; the line of unit_gate, with
gates of 1, shows that they are the only difference. docs/upcycling.md says
when to choose which router.
"""

import os

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import flags

_NUM_EXPERTS = absl_flags.DEFINE_integer(
    "num_experts", 8, "Experts of a sparse layer.", lower_bound=1
)
_STEPS = {
    stack: absl_flags.DEFINE_integer(
        f"{stack}_sparse_step",
        2,
        f"Every how many {stack} layers one becomes sparse; 0: none.",
        lower_bound=0,
    )
    for stack in ("encoder", "decoder")
}
_ROUTER = absl_flags.DEFINE_enum(
    "router",
    "switch",
    ["switch", "unit_gate", "top_2"],
    "switch: top-1, the gate is the probability. unit_gate: top-1, the gate is "
    "1. top_2: two experts, whose gates sum to 1.",
)
_NOISE = absl_flags.DEFINE_float(
    "noise",
    0.0,
    "Noise added to each expert, as a multiple of the standard deviation of "
    "the kernel.",
    lower_bound=0,
)
_CAPACITY_FACTOR = absl_flags.DEFINE_float(
    "capacity_factor",
    1.25,
    "Rows of an expert in training, over tokens per expert.",
    lower_bound=1e-3,
)
_BATCHES = absl_flags.DEFINE_integer(
    "batches", 2, "Random batches to compare the models on.", lower_bound=1
)


def main() -> None:
    _check_output()

    # Model.
    import keras

    from keras_switch import models

    keras.utils.set_random_seed(flags.SEED.value)
    with flags.blame("preset"):
        dense = models.SwitchSeq2SeqLM.from_preset(
            flags.PRESET.value, dtype=flags.DTYPE.value
        )

    # Upcycle; the model with the router that was asked for comes last.
    batches = _batches(dense.backbone.vocabulary_size)
    wanted = _logits(dense, batches)
    lines = [_line("dense", batches, wanted, wanted)]
    others = sorted({"switch", "unit_gate"} - {_ROUTER.value})
    for router in [*others, _ROUTER.value]:
        sparse = _upcycle(dense, router)
        lines.append(_line(router, batches, _logits(sparse, batches), wanted))

    # Report and save.
    print(_parameters("dense", dense))
    print(_parameters("sparse", sparse))
    print("\nrouter           loss   largest difference of a logit")
    print("\n".join(lines))
    _save(sparse)
    print(f"\nThe model with router {_ROUTER.value} is in {flags.OUTPUT.value}")


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=("backend", "dtype", "output", "preset", "retain_heap", "seed"),
        requires=("output",),
        trained=True,
    )


# Rows of a batch, and tokens of a row on either side.
_ROWS, _LENGTH = 4, 32


def _check_output():
    output = flags.OUTPUT.value
    if os.path.isdir(output) and not os.listdir(output):
        return
    if os.path.lexists(output):
        raise flags.UsageError(
            f"--output must be a new folder, or empty; received {output!r}."
        )


def _batches(vocabulary_size):
    """Random tokens, in rows of different lengths, and random targets."""
    rng = np.random.default_rng(flags.SEED.value)
    batches = []
    for _ in range(_BATCHES.value):
        inputs = dict(_tokens(rng, vocabulary_size, "encoder"))
        inputs |= _tokens(rng, vocabulary_size, "decoder")
        count = inputs["decoder_padding_mask"].sum()
        batches.append((inputs, rng.integers(0, vocabulary_size, count)))
    return batches


def _tokens(rng, vocabulary_size, stack):
    shape = (_ROWS, _LENGTH)
    lengths = rng.integers(_LENGTH // 2, _LENGTH + 1, (_ROWS, 1))
    mask = np.arange(_LENGTH) < lengths
    ids = np.where(mask, rng.integers(0, vocabulary_size, shape), 0)
    yield f"{stack}_token_ids", ids.astype("int32")
    yield f"{stack}_padding_mask", mask.astype("int32")


def _logits(model, batches):
    """Logits of the real positions of each batch, `[N, V]`."""
    from keras import ops

    return [
        ops.convert_to_numpy(model(inputs, training=False))[
            inputs["decoder_padding_mask"] > 0
        ]
        for inputs, _ in batches
    ]


def _upcycle(dense, router):
    from keras_switch.convert.upcycle import UnitGateRouter, upcycle
    from keras_switch.layers import TopKRouter

    routers = {
        "switch": "switch",
        "unit_gate": UnitGateRouter(),
        "top_2": TopKRouter(k=2, second_policy="all"),
    }
    try:
        return upcycle(
            dense,
            _NUM_EXPERTS.value,
            encoder_sparse_step=_STEPS["encoder"].value,
            decoder_sparse_step=_STEPS["decoder"].value,
            router=routers[router],
            noise=_NOISE.value,
            seed=flags.SEED.value,
            capacity_factor=_CAPACITY_FACTOR.value,
        )
    except ValueError as error:
        raise flags.UsageError(str(error)) from error


def _line(name, batches, logits, wanted):
    losses = [
        _cross_entropy(targets, x)
        for (_, targets), x in zip(batches, logits, strict=True)
    ]
    difference = max(
        np.abs(x - y).max() for x, y in zip(logits, wanted, strict=True)
    )
    return f"{name:10}  {np.mean(losses):9.4f}   {difference:.1e}"


def _cross_entropy(targets, logits):
    logits = logits.astype("float64")
    logits -= logits.max(axis=-1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=-1))  # [N]
    return np.mean(normaliser - logits[np.arange(len(targets)), targets])


def _parameters(name, model):
    from keras_switch.parameters import count_parameters

    count = count_parameters(model.backbone)
    return (
        f"{name:6}  {count['total']:>15,} parameters, "
        f"{count['active']:,} of them active for a token"
    )


def _save(model):
    """The folder is whole or absent."""
    from keras_switch import files

    with (
        flags.blame("output"),
        files.atomic_folder(flags.OUTPUT.value) as temporary,
    ):
        model.save_to_preset(str(temporary))


if __name__ == "__main__":
    run()
