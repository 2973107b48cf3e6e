"""What must be the same for a run to be resumed."""

import json
import platform
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import keras

from keras_switch.files import CheckpointError
from keras_switch.resume.state import METRICS, SEEDS, part_of, stable

# Whichever of these is installed.
_PACKAGES = (
    "keras",
    "keras-hub",
    "keras-switch",
    "numpy",
    "jax",
    "jaxlib",
    "tensorflow",
    "torch",
    "grain",
)
# Seeds say where random numbers began; the checkpoint says where they are.
# Rematerialization changes what a step takes, not what it computes.
_IGNORED = ("seed", "compile_config", "build_config", "rematerialize")
_MOST = 5


def identity(
    model: keras.Model,
    variables: dict[str, keras.Variable],
    data: str | None,
) -> dict[str, Any]:
    """Describes a model, its optimizer, its data and the packages.

    Args:
        model: Built and compiled.
        variables: Its variables by name.
        data: Fingerprint of the data.

    Returns:
        A dict for JSON. The descriptions of the model and the optimizer are
        JSON in a string: they may be nested deeper than is read from a file.
    """
    shapes = {
        name: f"{variable.dtype} {list(variable.shape)}"
        for name, variable in variables.items()
        if part_of(name) not in (METRICS, SEEDS)
    }
    configs = {"model": _config(model), "optimizer": _config(model.optimizer)}
    parts = {
        part: json.dumps(
            {
                "config": config,
                "variables": {
                    name: shape
                    for name, shape in shapes.items()
                    if part_of(name) == part
                },
            },
            sort_keys=True,
        )
        for part, config in configs.items()
    }
    backend = type(next(iter(variables.values()))).__module__
    return {**parts, "data": data, "backend": backend, "versions": _versions()}


def check(file: Any, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to resume what has changed.

    Args:
        file: The checkpoint, for errors.
        saved: Its `identity`.
        now: That of the model which is about to train.

    Raises:
        CheckpointError: if the model, the optimizer, the data or the backend
            is another, with what differs. Other versions are a warning only.
    """
    for field in ("backend", "model", "optimizer", "data"):
        before, after = saved.get(field), now[field]
        if field in ("model", "optimizer"):
            before, after = json.loads(before), json.loads(after)
        changes = list(_changes(field, before, after))
        if changes:
            more = len(changes) - _MOST
            listed = "; ".join(changes[:_MOST])
            raise CheckpointError(
                file,
                field,
                "as it was in the run to resume",
                listed + (f"; and {more} more" if more > 0 else ""),
                "Restore it, or train into another folder.",
            )
    changes = list(_changes("", saved.get("versions"), now["versions"]))
    if changes:
        warnings.warn(
            f"{file} was written with other versions: {'; '.join(changes)}. "
            "What follows may differ in the last bits from an uninterrupted "
            "run.",
            stacklevel=2,
        )


def _versions():
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _config(thing):
    try:
        return _plain(keras.saving.serialize_keras_object(thing))
    except (NotImplementedError, TypeError, ValueError):
        # A subclass without a config; its variables must do.
        return {"class_name": type(thing).__name__}


def _plain(value):
    """A config as JSON has it, without what changes from process to
    process."""
    if isinstance(value, dict):
        return {
            str(key): _plain(item)
            for key, item in value.items()
            if key not in _IGNORED
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return stable(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return type(value).__name__


def _changes(path: str, before: Any, after: Any) -> Iterator[str]:
    """Says where two values differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted({*before, *after}):
            inner = f"{path}.{key}" if path else key
            if key not in after:
                yield f"{inner} is gone"
            elif key not in before:
                yield f"{inner} is new"
            else:
                yield from _changes(inner, before[key], after[key])
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
    ):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from _changes(f"{path}[{index}]", *pair)
    elif before != after:
        yield f"{path} was {_short(before)} and is {_short(after)}"


def _short(value):
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
