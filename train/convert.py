r"""Converts a checkpoint into another layout.

    python train/convert.py --source=switch-base-8 --target=runs/base_8
    python train/convert.py --source=runs/base_8 --target=out --to=huggingface
    python train/convert.py --source=t5x_checkpoint --dry_run

The source is a Keras preset with weights, a folder in the layout of Hugging
Face transformers (model types switch_transformers and t5) or a T5X checkpoint;
which of them it is, the folder shows. The target is a Keras preset or a folder
for transformers; T5X checkpoints are read, not written.

--dry_run prints where each weight lies in the source and in the target, and
the number of parameters, and writes nothing. Otherwise the target is loaded
again and its logits on random tokens are compared with the source's; with
--against_transformers also with those that transformers computes.
"""

import os

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import flags

_SOURCE = absl_flags.DEFINE_string("source", None, "Folder to read.")
_TARGET = absl_flags.DEFINE_string(
    "target", None, "Folder to write; new, or empty."
)
_TO = absl_flags.DEFINE_enum(
    "to", "keras", ["keras", "huggingface"], "Layout of the target."
)
_DRY_RUN = absl_flags.DEFINE_bool(
    "dry_run", False, "Print the map and the parameter count; write nothing."
)
_AGAINST_TRANSFORMERS = absl_flags.DEFINE_bool(
    "against_transformers",
    False,
    "Compare with the logits of the package transformers, too; the source or "
    "the target must be in its layout.",
)
_TOLERANCE = absl_flags.DEFINE_float(
    "tolerance",
    1e-4,
    "Largest difference of a logit that passes.",
    lower_bound=0,
)

# Rows of the random batch that is compared, and tokens of a row.
_ROWS, _LENGTH = 2, 16


def main() -> None:
    from keras_switch import convert

    # Source.
    _check()
    with flags.blame("source"):
        kind = convert.kind_of(_SOURCE.value)
        lm = convert.load(_SOURCE.value)
    backbone = lm.backbone

    # Map.
    counts = _count(backbone)
    print(f"{_SOURCE.value} is a {kind} checkpoint of {counts:,} parameters")
    if _DRY_RUN.value:
        with flags.blame("to"):
            print(_map(backbone, kind))
        return

    # Target.
    with flags.blame("to"):
        _write(lm)

    # Verification.
    x = _inputs(backbone.vocabulary_size)
    wanted = _logits(lm, x)
    again = convert.load(_TARGET.value)
    differences = {"the target, loaded again": _logits(again, x)}
    if _AGAINST_TRANSFORMERS.value:
        differences |= _of_transformers(kind, x)
    _report(wanted, differences)


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=("backend", "retain_heap", "seed"),
        requires=("source",),
    )


def _check():
    if not os.path.isdir(_SOURCE.value):
        raise flags.UsageError(
            f"--source must be a folder; received {_SOURCE.value!r}."
        )
    target = _TARGET.value
    if _DRY_RUN.value:
        return
    if target is None:
        raise flags.UsageError("--target must be given, or --dry_run.")
    if os.path.lexists(target) and (
        not os.path.isdir(target) or os.listdir(target)
    ):
        raise flags.UsageError(
            f"--target must be a new folder, or empty; received {target!r}."
        )


def _count(backbone):
    from keras_switch.convert import rules

    shapes = [tuple(v.shape) for v in rules.variables(backbone)]
    return sum(int(np.prod(shape)) for shape in shapes)


def _map(backbone, kind):
    """A line for each weight: ours, and where it lies in the other layout."""
    from keras_switch import convert
    from keras_switch.convert import rules

    layout = kind if kind != "keras" else "huggingface"
    lines = []
    for entry in rules.entries(backbone, convert.table_of(layout, backbone)):
        theirs = entry.sources[0]
        if len(entry.sources) > 1:
            theirs += f" ... ({len(entry.sources)} tensors)"
        turned = ", transposed" if entry.transposed else ""
        shape = "x".join(map(str, entry.shape))
        lines.append(f"{entry.path} [{shape}]\n    {theirs}{turned}")
    return "\n".join(lines)


def _write(lm):
    from keras_switch import files

    target = os.path.abspath(_TARGET.value)
    if _TO.value == "huggingface":
        lm.export_to_transformers(target)
        return
    with files.atomic_folder(target) as temporary:
        lm.save_to_preset(str(temporary))


def _inputs(vocabulary_size):
    rng = np.random.default_rng(flags.SEED.value)
    ids = rng.integers(2, vocabulary_size, (2, _ROWS, _LENGTH)).astype("int32")
    ids[1, :, 0] = 0  # the start token
    mask = np.ones_like(ids[0])
    return {
        "encoder_token_ids": ids[0],
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids[1],
        "decoder_padding_mask": mask,
    }


def _logits(lm, x):
    from keras import ops

    return ops.convert_to_numpy(lm(x))


def _of_transformers(kind, x):
    with flags.blame("against_transformers"):
        folders = {
            "the source": _SOURCE.value if kind == "huggingface" else None,
            "the target": _TARGET.value if _TO.value == "huggingface" else None,
        }
        if not any(folders.values()):
            raise ValueError("neither folder is in its layout.")
        return {
            f"{name}, by transformers": _run_transformers(folder, x)
            for name, folder in folders.items()
            if folder
        }


def _run_transformers(folder, x):
    try:
        import torch
        from transformers import AutoModelForSeq2SeqLM
    except ImportError as error:
        raise ValueError(f"pip install transformers torch: {error}") from error
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()  # nosec B615
    with torch.inference_mode():
        return model(
            input_ids=torch.tensor(x["encoder_token_ids"]).long(),
            decoder_input_ids=torch.tensor(x["decoder_token_ids"]).long(),
        ).logits.numpy()


def _report(wanted, others):
    largest = 0.0
    for name, logits in others.items():
        difference = float(np.abs(logits - wanted).max())
        largest = max(largest, difference)
        print(f"largest difference of a logit to {name}: {difference:.1e}")
    if not largest <= _TOLERANCE.value:
        raise SystemExit(
            f"The difference must be at most {_TOLERANCE.value:g}: do not use "
            "the target."
        )
    print(f"written: {_TARGET.value}")


if __name__ == "__main__":
    run()
