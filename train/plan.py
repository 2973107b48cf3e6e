r"""Says what a training step costs each device of a mesh, and whether it fits.

    python train/plan.py --preset=switch_c_2048 --mesh=batch:512 \
        --batch_size=2048 --input_length=512 --group_size=2048

No weight is made and no device but this machine's processor is needed: the
step of pretrain is compiled for as many virtual devices, with the layouts it
would run with, and the compiler is asked. It prints, for one device, the bytes
of weights, optimizer and of what lives during a step; the FLOPs; and how many
collectives of each kind there are and their bytes.

A deep model is compiled with --layers of its layers in each stack, and with
twice as many; what the others add is the difference. --layers=0 compiles it
whole. The compiler is that of the CPU, asked twice: for the order it goes in
with many cores, and for that of least memory; what needs less is printed. One
for accelerators fuses more, so that temporary memory is rather less there.
Bytes of weights and, in float32, of collectives are those of any device;
bfloat16 is computed in float32 here, which makes both larger.

    python train/plan.py --preset=switch_c_2048 --mesh=batch:512 \
        --topology=v4:8x8x8 --dtype=bfloat16 --rematerialize ...

compiles for TPUs with their own compiler, which runs on any Linux machine (pip
install libtpu): then all numbers are theirs.
"""

import json
import math
import os

from absl import flags as absl_flags

from keras_switch_train import flags, mesh, topology

_TARGET_LENGTH = absl_flags.DEFINE_integer(
    "target_length",
    0,
    "Tokens of a decoder row; 0: a quarter of --input_length, about what span "
    "corruption makes.",
    lower_bound=0,
)
_GROUP_SIZE = absl_flags.DEFINE_integer(
    "group_size",
    0,
    "Tokens that compete for capacity; 0: a row, or what the preset says.",
    lower_bound=0,
)
_DEVICE_MEMORY = absl_flags.DEFINE_float(
    "device_memory", 32.0, "Gigabytes (1e9) of a device.", lower_bound=0.0
)
_TOPOLOGY = absl_flags.DEFINE_string(
    "topology",
    None,
    "TPUs to compile for, as libtpu names them: v4:8x8x8, v6e:16x16. By "
    "default virtual devices of the CPU.",
)
_LAYERS = absl_flags.DEFINE_integer(
    "layers",
    2,
    "Layers of each stack to compile, and twice as many; 0: the whole model.",
    lower_bound=0,
)


def main() -> None:
    sizes = mesh.axes()
    if not sizes:
        raise flags.UsageError("--mesh must be given, as in batch:8,model:2.")
    config = _start(sizes)
    import keras

    from keras_switch_train import abstract_step, plan_report

    batch = abstract_step.Batch(
        flags.BATCH_SIZE.value,
        flags.INPUT_LENGTH.value,
        _TARGET_LENGTH.value or max(1, flags.INPUT_LENGTH.value // 4),
    )
    layout_map = keras.distribution.distribution()._layout_map
    with flags.blame("mesh"):
        result = plan_report.plan(config, batch, layout_map, _LAYERS.value)
    result |= {
        "preset": flags.PRESET.value,
        "mesh": sizes,
        "dtype": flags.DTYPE.value,
        "topology": _TOPOLOGY.value,
        "rematerialize": config["rematerialize"],
        "batch": batch._asdict(),
    }
    print(plan_report.text(result, _DEVICE_MEMORY.value))
    if flags.WORKDIR.value:
        from keras_switch import files

        path = os.path.join(flags.make_workdir(), "plan.json")
        with files.atomic_write(path) as file:
            file.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _start(sizes):
    """Spreads what follows over the mesh; returns the model's arguments."""
    if _TOPOLOGY.value:
        # Before there is a mesh: looking at them makes variables.
        config = _arguments()
        topology.start(_TOPOLOGY.value)
        return config
    # Before JAX is imported.
    count = math.prod(sizes.values())
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} "
        f"--xla_force_host_platform_device_count={count}"
    )
    mesh.start()
    return _arguments()


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "dtype",
            "input_length",
            "layout",
            "mesh",
            "preset",
            "rematerialize",
            "retain_heap",
            "workdir",
        ),
    )


def _arguments():
    from keras_switch import parameters

    with flags.blame("preset"):
        config = parameters.arguments_of(flags.PRESET.value)
    if _GROUP_SIZE.value:
        config["group_size"] = _GROUP_SIZE.value
    if flags.REMATERIALIZE.value:
        config["rematerialize"] = True
    return {**config, "dtype": flags.DTYPE.value}


if __name__ == "__main__":
    run()
