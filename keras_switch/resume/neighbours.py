"""What the other callbacks of a training remember."""

import sys
import warnings
from typing import Any

import keras
import numpy as np

from keras_switch.resume.values import decode, encode

# What Keras' own callbacks remember from step to step and cannot find again.
# One with `get_state` and `set_state` speaks for itself.
_REMEMBERED = {
    keras.callbacks.EarlyStopping: (
        "wait",
        "stopped_epoch",
        "best",
        "best_epoch",
        "best_weights",
    ),
    keras.callbacks.History: ("history", "epoch"),
    keras.callbacks.ModelCheckpoint: (
        "best",
        "_batches_seen_since_last_saving",
        "_last_batch_seen",
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.SwapEMAWeights: ("_ema_weights_in_model",),
    keras.callbacks.TensorBoard: ("_global_train_batch", "_global_test_batch"),
    # These have nothing to remember.
    keras.callbacks.LearningRateScheduler: (),
    keras.callbacks.ProgbarLogger: (),
    keras.callbacks.RemoteMonitor: (),
    keras.callbacks.TerminateOnNaN: (),
}


def neighbours(callback: keras.callbacks.Callback) -> list:
    """The other callbacks of the `fit` that is calling a callback.

    Keras tells a callback its model and nothing of its neighbours: the list
    is found where the call came from.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, keras.callbacks.CallbackList):
            return [c for c in caller.callbacks if c is not callback]
        frame = frame.f_back
    return []


def warn_of_unknown(callbacks: list) -> None:
    """Names callbacks whose memory, if any, will be lost in a resume."""
    names = sorted({type(c).__name__ for c in callbacks if not _is_known(c)})
    if names:
        warnings.warn(
            f"ResumableCheckpoint cannot save what {', '.join(names)} "
            "remembers: it starts anew when training is resumed. If that "
            "matters, give it get_state() and set_state(state).",
            stacklevel=2,
        )


def states_of(
    callbacks: list, arrays: dict[str, np.ndarray]
) -> list[tuple[str, Any]]:
    """What callbacks remember.

    Args:
        callbacks: In the order of `fit`.
        arrays: Where their arrays go; changed in place.

    Returns:
        Pairs of a class name and a state, for JSON.
    """
    return [
        (
            type(callback).__name__,
            encode(
                _state_of(callback),
                arrays,
                f"callbacks/{index}/{type(callback).__name__}",
            ),
        )
        for index, callback in enumerate(callbacks)
        if _is_known(callback)
    ]


def remind(
    callbacks: list,
    states: list[tuple[str, Any]],
    arrays: dict[str, np.ndarray],
) -> None:
    """Gives callbacks back what they remembered.

    States go to callbacks of the same class, in their order; a callback that
    is new starts anew.

    Args:
        callbacks: In the order of `fit`.
        states: What `states_of` returned.
        arrays: The arrays by name.
    """
    waiting = list(states)
    for callback in filter(_is_known, callbacks):
        for pair in waiting:
            if pair[0] == type(callback).__name__:
                waiting.remove(pair)
                _set_state(callback, decode(pair[1], arrays))
                break


def _is_known(callback):
    speaks = hasattr(callback, "get_state") and hasattr(callback, "set_state")
    return speaks or isinstance(
        callback, (*_REMEMBERED, keras.callbacks.CSVLogger)
    )


def _attributes(callback):
    return [
        attribute
        for kind, attributes in _REMEMBERED.items()
        if isinstance(callback, kind)
        for attribute in attributes
        if hasattr(callback, attribute)
    ]


def _state_of(callback):
    if hasattr(callback, "get_state"):
        return callback.get_state()
    if isinstance(callback, keras.callbacks.CSVLogger):
        return _rows_of(callback)
    return {name: getattr(callback, name) for name in _attributes(callback)}


def _set_state(callback, state):
    if hasattr(callback, "set_state"):
        callback.set_state(state)
    elif isinstance(callback, keras.callbacks.CSVLogger):
        _set_rows(callback, state)
    else:
        for name in _attributes(callback):
            if name in state:
                setattr(callback, name, state[name])


def _rows_of(logger):
    with open(logger.filename, encoding="utf-8", newline="") as file:
        return {"text": file.read(), "keys": logger.keys}


def _set_rows(logger, state):
    """Rows of steps that are done again must not be there twice, and without
    `append=True` the file has just been emptied."""
    file = logger.csv_file
    # None before its `on_train_begin`, which may come after this.
    if file is None or file.closed:
        return
    file.seek(0)
    file.truncate()
    file.write(state["text"])
    file.flush()
    logger.keys = state["keys"]
    logger.append_header = not state["text"]
