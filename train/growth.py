r"""Devices, experts and batch grow together: what a step costs one device.

    python train/growth.py --workdir=runs/growth

compiles the training step of a small Switch Transformer for 8, 16, 32 and 64
virtual devices, with as many experts and rows a device each time, and prints
what the compiler says a device computes, holds and sends. With the experts on
the axis of the batch all of it stays flat, but for the router, whose work for a
token grows with the experts.

The bytes of an all-to-all are those of the paper, E * C * D * 4 for each
group: computed, and read in the compiled program.
"""

import json
import os

from absl import flags as absl_flags

from keras_switch_train import flags, mesh

_DEVICES = absl_flags.DEFINE_list(
    "devices", ["8", "16", "32", "64"], "Numbers of virtual devices."
)
_ROWS, _LENGTH, _EXPERTS = 4, 128, 2  # a device
_SIZES = {
    "vocabulary_size": 8192,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "hidden_dim": 256,
    "intermediate_dim": 1024,
}


def main() -> None:
    try:
        counts = [int(count) for count in _DEVICES.value]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise flags.UsageError(
            "--devices must be numbers above 0, as in 8,16; received "
            f"{','.join(_DEVICES.value)!r}."
        )
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={max(counts)}"
    )
    from keras_switch import files
    from keras_switch_train import plots, results

    rows = [_row(count) for count in counts]
    results.show(rows)
    folder = flags.make_workdir()
    with files.atomic_write(os.path.join(folder, "growth.json")) as file:
        file.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    plots.plot_growth(rows, os.path.join(folder, "growth.png"))


def _row(count):
    import keras

    from keras_switch import parameters
    from keras_switch.layers.capacity import slots_of
    from keras_switch_train import abstract_step, plan_report

    experts = _EXPERTS * count
    # A group is what a device holds: its capacity is that of many tokens.
    group = _ROWS * _LENGTH
    arguments = parameters.arguments_of(
        {**_SIZES, "num_experts": experts, "group_size": group}
    )
    batch = abstract_step.Batch(_ROWS * count, _LENGTH, _LENGTH)
    devices = keras.distribution.list_devices()[:count]
    distribution = mesh.distribution_of({"batch": count}, devices)
    with distribution.scope():
        costs = plan_report.least(arguments, batch)
        state = abstract_step.state_bytes(arguments, distribution._layout_map)
    capacity = slots_of(group, experts, arguments["capacity_factor"], 4)
    sent = experts * capacity * _SIZES["hidden_dim"] * 4
    number = costs["all-to-all, count"]
    return {
        "devices": count,
        "experts": experts,
        "rows": _ROWS * count,
        "GFLOP": round(costs["flops"] / 1e9, 3),
        "weights and optimizer, MB": round(
            (state["weights"] + state["optimizer"]) / 1e6, 1
        ),
        "temporary, MB": round(costs["temporary"] / 1e6, 1),
        "all-to-alls": number,
        "all-to-all, MB each": round(
            costs["all-to-all, bytes"] / number / 1e6, 4
        ),
        "MB each by the paper": round(sent / 1e6, 4),
        "all-reduce, MB": round(costs["all-reduce, bytes"] / 1e6, 1),
        "all-gather, MB": round(costs["all-gather, bytes"] / 1e6, 3),
    }


def run() -> None:
    """The console command."""
    flags.run(
        main, uses=("backend", "retain_heap", "workdir"), requires=("workdir",)
    )


if __name__ == "__main__":
    run()
