"""Tensors of a checkpoint into a model: all of them or none."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_switch.convert.rules import Entry, variables
from keras_switch.files import CheckpointError
from keras_switch.ops import state

# Floats of at most 32 bits; ours are the model's own dtype.
FLOATS = ("float32", "float16", "bfloat16")


def assign(
    backbone: Any,
    entries: Sequence[Entry],
    read: Callable[[str], np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    aliases: Mapping[str, str] | None = None,
    dtypes: Mapping[str, str] | None = None,
    file: Any = "checkpoint",
) -> None:
    """Fills a backbone from a checkpoint, strictly.

    Names, shapes and dtypes are compared before a byte is read; then every
    tensor is read once to check its values, and only then is anything
    assigned, one tensor at a time. So whatever is wrong with the checkpoint,
    the backbone is bit-equal to before.

    Args:
        backbone: A `SwitchBackbone`.
        entries: What `rules.entries` returned for it.
        read: Reads a tensor of the checkpoint by its name.
        shapes: Shapes of all tensors in the checkpoint, by name.
        aliases: Names that may be there as well, by the tensor that each must
            equal (the copies of a tied embedding).
        dtypes: Names of the dtypes of the tensors, if known before reading.
        file: Where the checkpoint lies, for messages.

    Raises:
        CheckpointError: if a tensor is missing, is left over, has another
            shape or dtype, or is not finite.
    """
    aliases = {k: v for k, v in (aliases or {}).items() if k in shapes}
    _check_names(entries, shapes, aliases, file)
    _check_shapes(entries, shapes, aliases, file)
    _check_dtypes(dtypes or {}, file)
    for entry in entries:
        for name in entry.sources:
            _check_values(name, read(name), file)
    for alias, name in aliases.items():
        if not np.array_equal(read(alias), read(name)):
            raise CheckpointError(
                file, alias, f"equal to {name}, with which it is tied", "others"
            )
    targets = {variable.path: variable for variable in variables(backbone)}
    for entry in entries:
        state.assign(targets[entry.path], _ours(entry, read))


def _check_names(entries, shapes, aliases, file):
    wanted = [name for entry in entries for name in entry.sources]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise CheckpointError(
            file, missing[0], "there", _count(len(missing), "missing tensor")
        )
    unused = sorted(set(shapes) - set(wanted) - set(aliases))
    if unused:
        raise CheckpointError(
            file,
            unused[0],
            "a tensor of this model",
            _count(len(unused), "tensor") + " that it has no place for",
        )


def _count(number, noun):
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _check_shapes(entries, shapes, aliases, file):
    for entry in entries:
        for name in entry.sources:
            if tuple(shapes[name]) != entry.source_shape:
                raise CheckpointError(
                    file,
                    name,
                    f"of shape {entry.source_shape}",
                    f"shape {tuple(shapes[name])}",
                )
    for alias, name in aliases.items():
        if tuple(shapes[alias]) != tuple(shapes[name]):
            raise CheckpointError(
                file,
                alias,
                f"of shape {tuple(shapes[name])}, like {name}",
                f"shape {tuple(shapes[alias])}",
            )


def _check_dtypes(dtypes, file):
    for name, dtype in dtypes.items():
        if dtype not in FLOATS:
            raise CheckpointError(
                file, name, f"one of {', '.join(FLOATS)}", dtype
            )


def _check_values(name, values, file):
    _check_dtypes({name: values.dtype.name}, file)
    if not np.isfinite(values.astype("float32", copy=False)).all():
        raise CheckpointError(
            file, name, "finite everywhere", "NaN or infinite values"
        )


def _ours(entry, read):
    """The tensor as our variable has it."""
    parts = [read(name).astype("float32", copy=False) for name in entry.sources]
    if entry.transposed:
        parts = [part.T for part in parts]
    if len(entry.shape) == len(entry.source_shape):
        return np.ascontiguousarray(parts[0])
    return np.stack(parts)


def theirs(entry: Entry, values: np.ndarray) -> dict[str, np.ndarray]:
    """Our variable as the tensors of the other layout, by name.

    Args:
        entry: Where it lies.
        values: `entry.shape`.
    """
    stacked = len(entry.shape) > len(entry.source_shape)
    parts = list(values) if stacked else [values]
    if entry.transposed:
        parts = [part.T for part in parts]
    return {
        name: np.ascontiguousarray(part)
        for name, part in zip(entry.sources, parts, strict=True)
    }
