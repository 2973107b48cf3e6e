"""Weights of a preset into a backbone: every one of them, or an error.

Which arrays there must be, and where Keras keeps them, follows from the
model.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_switch.models.preset_arrays import FLOATS, WeightFiles
from keras_switch.ops.state import placed

_MAX_DEPTH = 32


def load_weights(backbone: Any, files: WeightFiles) -> None:
    """Fills a new backbone, strictly.

    Paths, shapes and dtypes are compared before a byte is read; then arrays
    are read layer by layer. If one of them is refused, the backbone is of no
    use: it must be one that nobody else has yet.

    Args:
        backbone: A `SwitchBackbone` that was just made.
        files: The weights.

    Raises:
        CheckpointError: if an array is missing, is left over, has another
            shape or dtype, or is not finite.
    """
    layers = {_stored(name, files): ours for name, ours in _layers(backbone)}
    stores = {group: _variables(layer) for group, layer in layers.items()}
    wanted = {
        f"{group}/vars/{key}": variable
        for group, store in stores.items()
        for key, variable in store.items()
    }
    _check_paths(files, wanted)
    for key, variable in wanted.items():
        _check_variable(files, key, variable)
    for group, store in stores.items():
        if store:
            values = {
                key: placed(
                    variable, _finite(files, f"{group}/vars/{key}", variable)
                )
                for key, variable in store.items()
            }
            layers[group].load_own_variables(values)


def _stored(group, files):
    """The group as it was named before there were `ExpertDense` layers, in
    presets from then."""
    old = group.replace("/expert_dense", "/einsum_dense")
    if old == group or not any(k.startswith(f"{old}/") for k in files.arrays):
        return group
    return old


def _check_paths(files, wanted):
    missing = [key for key in wanted if key not in files.arrays]
    if missing:
        raise (files.whole / missing[0]).refuse(
            "there", f"nothing; {len(missing)} arrays are missing"
        )
    unused = sorted(set(files.arrays) - set(wanted))
    if unused:
        raise files.place(unused[0]).refuse(
            "an array of this model",
            f"one of {len(unused)} that it has no place for",
        )


def _check_variable(files, key, variable):
    stored = files.arrays[key]
    shape, dtype = tuple(variable.shape), _dtype(variable)
    if stored.dataset.shape != shape:
        raise files.place(key).refuse(f"of shape {shape}", stored.dataset.shape)
    right = stored.dtype in FLOATS if dtype in FLOATS else None
    if not (stored.dtype == dtype if right is None else right):
        raise files.place(key).refuse(f"of a dtype like {dtype}", stored.dtype)


def _dtype(variable):
    return keras.backend.standardize_dtype(variable.dtype)


def _finite(files, key, variable):
    values, dtype = files.read(key), _dtype(variable)
    if dtype in FLOATS:
        with np.errstate(over="ignore", invalid="ignore"):
            # What is finite in float32 may not be in float16.
            values = values.astype(np.dtype(dtype), copy=False)
        if not np.isfinite(values.astype("float32", copy=False)).all():
            raise files.place(key).refuse(
                f"finite everywhere in {dtype}", "NaN or infinite values"
            )
    return values


# === Where Keras keeps the variables of a layer ===


def _variables(layer):
    """The variables that a layer saves, by the name it saves them under."""
    store: dict[str, Any] = {}
    mode = layer.quantization_mode
    if mode is None or not hasattr(layer, "variable_serialization_spec"):
        layer.save_own_variables(store)
        return store
    # Asked for what it would save, a layer that a map of policies has made
    # quantized leaves its scales out (Keras 3.15).
    own = {variable.name: variable for variable in layer.weights}
    names = layer.variable_serialization_spec[mode]
    there = [own[name] for name in names if name in own]
    return {str(i): variable for i, variable in enumerate(there)}


def _layers(model) -> Iterator[tuple[str, Any]]:
    """Layers of a functional model, by the group that Keras keeps them in.

    Keras goes by attributes, in order of their names, private ones last; in a
    list, by class names. What it has met before it leaves out.
    """
    seen: set[int] = {id(model)}
    yield from _of_list(model.layers, "layers", seen)


def _of_list(items, prefix, seen, depth=0):
    counts: dict[str, int] = {}
    for item in items.values() if isinstance(items, dict) else items:
        if isinstance(item, keras.layers.Layer):
            name = _snake_case(type(item).__name__)
        elif isinstance(item, list | tuple | dict) and depth < _MAX_DEPTH:
            name = "container"
        else:
            continue
        number = counts.get(name, -1) + 1
        counts[name] = number
        path = f"{prefix}/{name}_{number}" if number else f"{prefix}/{name}"
        if name == "container" and not isinstance(item, keras.layers.Layer):
            yield from _of_list(item, path, seen, depth + 1)
        else:
            yield from _of_layer(item, path, seen)


def _of_layer(layer, path, seen):
    if id(layer) in seen:
        return
    seen.add(id(layer))
    yield path, layer
    names = set(dir(layer)) - _names_of_every_layer()
    for name in sorted(names, key=lambda n: f"~{n}" if n[0] == "_" else n):
        child = getattr(layer, name, None)
        if isinstance(child, keras.layers.Layer):
            yield from _of_layer(child, f"{path}/{name}", seen)
        elif isinstance(child, list | tuple | dict):
            yield from _of_list(child, f"{path}/{name}", seen)


@functools.cache
def _names_of_every_layer():
    return frozenset(dir(keras.layers.Layer(name="layer")))


def _snake_case(name):
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
