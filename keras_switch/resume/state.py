"""Every variable that training changes, by name, on the host and back."""

import re
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_switch.files import CheckpointError
from keras_switch.ops.state import assign as assign_array
from keras_switch.ops.state import own_pieces, synchronize
from keras_switch.resume.pieces import Pieces

# Parts of the state. Metrics count from the start of an epoch.
MODEL, OPTIMIZER, METRICS, SEEDS = "model", "optimizer", "metrics", "seeds"


def stable(text: str) -> str:
    """A name without the number that Keras adds to each new layer of a class:
    it depends on what else the process has made."""
    return re.sub(r"_\d+(?=[/_]|$)", "", text)


def variables_of(model: keras.Model) -> dict[str, keras.Variable]:
    """Every variable of a training by a name that outlives the process.

    Args:
        model: Built and compiled, its optimizer built too.

    Returns:
        A dict. Names start with `model/` (weights, and seed generators of
        layers), `optimizer/`, `metrics/`, or `seeds/` (generators of metrics,
        losses and the optimizer, which no layer tracks).
    """
    parts = {
        MODEL: model.variables,
        OPTIMIZER: model.optimizer.variables,
        METRICS: model.metrics_variables,
    }
    known = {id(v) for variables in parts.values() for v in variables}
    owners = [model.optimizer, model.loss, *model.metrics]
    parts[SEEDS] = _seeds(owners, known)
    return {
        f"{part}/{index:04d}/{stable(variable.path)}": variable
        for part, variables in parts.items()
        for index, variable in enumerate(variables)
    }


def part_of(name: str) -> str:
    """Which part of the state a variable's name belongs to."""
    return name.partition("/")[0]


def copy_to_host(
    model: keras.Model, variables: dict[str, keras.Variable]
) -> dict[str, Pieces]:
    """Copies of what this process saves of variables, while `fit` runs.

    Args:
        model: The model that is training.
        variables: Its variables by name.

    Returns:
        Pieces by the same names, where this process has any; later steps do
        not change them.
    """
    synchronize(model)
    values = {name: variable.value for name, variable in variables.items()}
    return {
        name: Pieces(variables[name].shape, pieces)
        for name, pieces in own_pieces(values).items()
    }


def assign(
    file: Any,
    variables: dict[str, keras.Variable],
    arrays: dict[str, np.ndarray | Pieces],
    parts: Sequence[str],
) -> None:
    """Sets variables to saved arrays: all of them or, if one does not fit,
    none. Of pieces only those are read that devices of this process need.

    Args:
        file: Where the arrays come from, for errors.
        variables: By name.
        arrays: By name.
        parts: Which parts of the state to set, the others are left alone.

    Raises:
        CheckpointError: if an array of these parts is missing, is one too
            many, or has another shape or dtype.
    """
    wanted, there = (
        {name for name in names if part_of(name) in parts}
        for names in (variables, arrays)
    )
    if wanted != there:
        raise CheckpointError(
            file,
            "arrays",
            "those of the variables",
            f"without {sorted(wanted - there)[:3]} and with "
            f"{sorted(there - wanted)[:3]}",
        )
    staged = {
        name: _typed(file, name, variables[name], arrays[name])
        for name in wanted
    }
    for name, array in staged.items():
        assign_array(variables[name], array)


def non_finite(arrays: dict[str, Pieces]) -> list[str]:
    """Names of the model's and the optimizer's arrays with NaN or infinity."""
    return [
        name
        for name, array in arrays.items()
        if part_of(name) in (MODEL, OPTIMIZER)
        and not all(map(_is_finite, array.pieces.values()))
    ]


def _is_finite(array):
    # Of NumPy's own kinds only floats and complex numbers have such values;
    # "V" are bfloat16 and smaller floats, and small integers.
    if array.dtype.kind not in "fcV":
        return True
    if array.dtype.kind == "V":
        array = array.astype("float32")
    return bool(np.isfinite(array).all())


def _typed(file, name, variable, array):
    dtype = np.dtype(variable.dtype)
    if array.dtype != dtype and array.dtype.itemsize == dtype.itemsize:
        array = array.view(dtype)
    for field, wanted, received in (
        ("shape", tuple(variable.shape), array.shape),
        ("dtype", dtype, array.dtype),
    ):
        if wanted != received:
            raise CheckpointError(file, f"{name} {field}", wanted, received)
    return array


def _seeds(owners, known):
    """States of seed generators that some objects, or theirs, hold."""
    found, kinds = [], (keras.metrics.Metric, keras.losses.Loss)
    waiting, seen = keras.tree.flatten(owners), set()
    while waiting:
        owner = waiting.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        attributes = list(getattr(owner, "__dict__", {}).values())
        for value in keras.tree.flatten(attributes):
            if isinstance(value, keras.random.SeedGenerator):
                if id(value.state) not in known:
                    known.add(id(value.state))
                    found.append(value.state)
            elif isinstance(value, (*kinds, keras.optimizers.Optimizer)):
                waiting.append(value)
    return found
