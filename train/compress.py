r"""Makes a trained model smaller: fewer bits, fewer experts, or none.

    python train/compress.py --preset=runs/section/preset \
        --output=runs/section_int8 --quantize=int8

writes a preset that the other binaries take, and prints what became of the
size. One of these says how; docs/shipping.md says which costs what:

    --quantize=int8               or int4: all kernels but the routers'
    --quantize=int4 --experts_only    those of the experts alone
    --prune_experts=4             the 4 most used experts of each sparse layer
    --merge_experts=4             the same, and the others join them
    --extract_dense               the most used one, in a dense layer

The last three count which experts are used, so they want text like that which
the model is to serve: the validation side of tasks, or a corpus.

    python train/compress.py --preset=runs/section/preset \
        --output=runs/section_4 --prune_experts=4 --task=debian_section

To quantize what was pruned, run it again on the result; evaluate says what
either cost. The same command once more finds that nothing is left to do.
"""

import math
import re
import tempfile
from typing import Any

from absl import flags as absl_flags
from absl import logging

from keras_switch_train import corpus, flags, made_by, task_data, task_flags

_QUANTIZE = absl_flags.DEFINE_enum(
    "quantize", None, ["int8", "int4"], "Keep weights in so many bits."
)
_EXPERTS_ONLY = absl_flags.DEFINE_bool(
    "experts_only", False, "Quantize the kernels of the experts alone."
)
_PRUNE = absl_flags.DEFINE_integer(
    "prune_experts",
    None,
    "Keep so many experts of each sparse layer, the most used.",
    lower_bound=1,
)
_MERGE = absl_flags.DEFINE_integer(
    "merge_experts",
    None,
    "Merge the experts of each sparse layer into so many.",
    lower_bound=1,
)
_EXTRACT = absl_flags.DEFINE_bool(
    "extract_dense", False, "Keep one expert of each, without a router."
)
_COUNTED = absl_flags.DEFINE_integer(
    "counted_batches",
    16,
    "Held-out batches of a corpus to count the use of experts on.",
    lower_bound=1,
)


def main() -> None:
    way = _check_flags()
    made_by.check_output(flags.OUTPUT.value)

    # Model.
    from keras_switch import convert
    from keras_switch.models.presets import find_preset

    with flags.blame("preset"):
        folder = find_preset(flags.PRESET.value).folder
        settings = _settings(way, folder)
        if made_by.is_done(flags.OUTPUT.value, settings):
            return
        lm = convert.load(folder, dtype=flags.DTYPE.value)
    before = _size(lm)

    # Compress.
    if way == "quantize":
        with flags.blame(way):
            _quantize(lm)
        small = lm
    else:
        report = _report(lm)
        with flags.blame(way):
            small = _fewer_experts(way, lm, report)

    # Save.
    with made_by.folder(flags.OUTPUT.value, settings) as temporary:
        small.save_to_preset(str(temporary))
    print(f"before: {before}\nafter:  {_size(small)}")
    print(f"The model is in {flags.OUTPUT.value}")


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "answer_length",
            "backend",
            "batch_size",
            "corpus",
            "dtype",
            "input_length",
            "objective",
            "output",
            "preset",
            "retain_heap",
            "task",
            "validation_examples",
        ),
        requires=("output",),
        trained=True,
    )


def _check_flags():
    """The name of the one flag that says how."""
    ways = (_QUANTIZE, _PRUNE, _MERGE, _EXTRACT)
    given = [way.name for way in ways if way.value]
    if len(given) != 1:
        names = ", ".join(f"--{way.name}" for way in ways)
        raise flags.UsageError(
            f"one of {names} must be given; received {len(given)} of them."
        )
    if _EXPERTS_ONLY.value and given != ["quantize"]:
        raise flags.UsageError("--experts_only goes with --quantize.")
    return given[0]


# Flags that decide which experts are counted how often.
_OF_TASKS = ("task", "answer_length", "input_length", "validation_examples")
_OF_CORPUS = (
    "corpus",
    "objective",
    "input_length",
    "counted_batches",
    "batch_size",
)


def _settings(way, folder):
    told = [way, "dtype"]
    if way == "quantize":
        told.append("experts_only")
    else:
        told += _OF_TASKS if task_flags.TASK.value else _OF_CORPUS
    values = {name: absl_flags.FLAGS[name].value for name in told}
    return made_by.settings("compress", folder, **values)


def _size(lm):
    """What the weights take, in memory and in the files."""
    from keras.backend import standardize_dtype

    from keras_switch.convert import rules

    count = 0
    for variable in rules.variables(lm.backbone):
        # Two weights of int4 are one number of int8.
        bits = re.search(r"\d+", standardize_dtype(variable.dtype))
        count += math.prod(variable.shape) * int(bits.group()) // 8
    return f"{count:,} bytes of weights"


def _quantize(lm):
    from keras_switch import layers

    def is_expert(layer):
        return isinstance(layer, layers.ExpertDense)

    filters = is_expert if _EXPERTS_ONLY.value else None
    lm.quantize(_QUANTIZE.value, filters=filters)


def _fewer_experts(way, lm, report):
    from keras_switch import convert

    if way == "extract_dense":
        return convert.extract_dense(lm, report)
    number = absl_flags.FLAGS[way].value
    return getattr(convert, way)(lm, number, report)


def _report(lm: Any) -> Any:
    """Which experts the text of the flags uses."""
    from keras_switch import analysis

    if lm.preprocessor is None:
        raise flags.UsageError(
            "--preset must have a tokenizer; it holds a model alone."
        )
    tokenizer = lm.preprocessor.tokenizer
    with tempfile.TemporaryDirectory() as folder:
        if task_flags.TASK.value:
            held_out = _of_tasks(lm, tokenizer)
        else:
            corpus.write_vocabulary(tokenizer, folder)
            held_out = corpus.make_held_out(
                corpus.load().held_out, tokenizer, _COUNTED.value, folder
            )
        batches = [held_out[i][0] for i in range(len(held_out))]
    with flags.blame("preset"):
        report = analysis.routing_report(lm.backbone, batches)
    for layer in report.layers:
        shares = ", ".join(f"{share:.0%}" for share in layer.load)
        logging.info("%s: its experts get %s", layer.name, shares)
    return report


def _of_tasks(lm, tokenizer):
    from keras_switch import tasks

    shape = task_data.shape_of(lm)
    encoded = []
    for task, splits in task_flags.load():
        most = task_data.VALIDATION_EXAMPLES.value or None
        asked = tasks.sample(splits.validation, most)
        with flags.blame("answer_length"):
            encoded.append(tasks.encode(task, asked, tokenizer, shape))
    return tasks.TaskHeldOut(encoded, shape, flags.BATCH_SIZE.value)


if __name__ == "__main__":
    run()
