"""Writing to a variable from inside a layer's call."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_switch.ops import dtensor
from keras_switch.ops.export import is_exporting


def record(variable: keras.Variable, value: Any) -> None:
    """Assigns `value` to a non-trainable variable where it can be kept.

    Under a JAX transformation that does not hand the variable in (a plain
    `jax.jit(layer)`) the value is a tracer that must not outlive the trace:
    there nothing is recorded. Nor is it in a program that is exported, which
    has no variables.
    """
    if is_exporting():
        return
    if keras.backend.backend() == "jax":
        import jax

        traced = isinstance(value, jax.core.Tracer)
        if traced and not isinstance(variable.value, jax.core.Tracer):
            return
    variable.assign(value)


def synchronize(model: keras.Model) -> None:
    """Brings a model's variables up to date while `fit` is running: JAX keeps
    them outside the model from step to step."""
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def assign(variable: keras.Variable, value: Any) -> None:
    """Assigns an array of the host; no device gets more than its part."""
    variable.assign(placed(variable, value))


def placed(variable: keras.Variable, value: Any) -> Any:
    """An array of the host as a tensor that lies where its variable does.

    Keras would put it whole on the first device, then spread it.

    Args:
        variable: Has a layout, or not.
        value: Of its shape: an array, or what becomes one, whole or indexed by
            slices. On JAX no more of it is read than devices here need.

    Returns:
        The tensor; an array where the variable has no layout.
    """
    layout = getattr(variable, "_layout", None)
    if layout is None or keras.backend.backend() == "torch":
        return np.asarray(value)
    dtype = np.dtype(variable.dtype)
    if keras.backend.backend() == "tensorflow":
        whole = np.asarray(value).astype(dtype, copy=False)
        return dtensor.placed(whole, layout)
    import jax

    return jax.make_array_from_callback(
        value.shape,
        getattr(layout, "backend_layout", layout),
        lambda index: np.asarray(value[index]).astype(dtype, copy=False),
    )


def fetched(value: Any) -> np.ndarray:
    """A tensor as an array of the host, whole.

    Where it is spread over processes, each of them must ask for it, in the
    same order: it takes them all.
    """
    if keras.backend.backend() == "tensorflow":
        return dtensor.fetched(value)
    if not _is_spread(value):
        return keras.ops.convert_to_numpy(value)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(value, tiled=True))


def _is_spread(tensor):
    """Whether no process has all of a tensor of JAX."""
    return not getattr(tensor, "is_fully_addressable", True)


def own_pieces(
    tensors: dict[str, Any],
) -> dict[str, dict[tuple[int, ...], np.ndarray]]:
    """Copies of what this process has to save of some tensors.

    Of all processes together they are every element once: what several
    devices hold, one of them hands over, and what all processes have, the
    first.

    Args:
        tensors: Values of variables, by name.

    Returns:
        By name, where there is anything, pieces by where they begin.
    """
    found = {name: _own_pieces(tensor) for name, tensor in tensors.items()}
    for pieces in found.values():
        for piece in pieces.values():
            # Starts all the copies from an accelerator before waiting for one.
            if hasattr(piece, "copy_to_host_async"):
                piece.copy_to_host_async()
    return {
        # On a CPU a tensor and its array may share memory, which the next
        # step writes to.
        name: {s: np.array(fetched(p), copy=True) for s, p in pieces.items()}
        for name, pieces in found.items()
        if pieces
    }


def _own_pieces(tensor):
    if not _is_spread(tensor) and not is_writer():
        return {}
    if not hasattr(tensor, "addressable_shards"):
        return {(0,) * len(tensor.shape): tensor}
    return {
        tuple(part.start or 0 for part in shard.index): shard.data
        for shard in tensor.addressable_shards
        if shard.replica_id == 0
    }


def process_count() -> int:
    """How many processes share a model."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def process_index() -> int:
    """Which of the processes that share a model this one is."""
    if keras.backend.backend() != "jax":
        return 0
    import jax

    return jax.process_index()


def largest(number: int) -> int:
    """The largest of what processes hand over; each of them must ask.

    Args:
        number: Below 2**31.
    """
    if process_count() == 1:
        return number
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.array(number)).max())


def from_writer(number: int) -> int:
    """What the first process hands over; each of them must ask.

    Args:
        number: Not negative, and below 2**31.
    """
    return largest(number if is_writer() else 0)


def is_writer() -> bool:
    """Whether this is the one of several processes that writes files."""
    return process_index() == 0


def wait_for_all(name: str) -> None:
    """Waits until every process is here."""
    if process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def on_host(variables: Iterable[keras.Variable]) -> Iterator[None]:
    """Within the block the first of several processes can read variables that
    are spread over them, and has one of these at a time on its host.

    Every process must enter it. The others must do nothing in the block: they
    take part in what the first reads there as they leave it.

    Args:
        variables: Those that may be read.
    """
    if process_count() == 1:
        yield
        return
    import jax

    spread = [v for v in variables if _is_spread(v.value)]
    # Not on an accelerator, which may have no room for it.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        if is_writer():
            try:
                with _Fetching(spread):
                    yield
            finally:
                from_writer(0)
        else:
            yield
            while number := from_writer(0):
                fetched(spread[number - 1].value)


class _Fetching(keras.StatelessScope):
    """Gathers a variable when it is read, and tells the other processes."""

    def __init__(self, variables):
        super().__init__()
        self._values = {
            id(variable): (number, variable.value)
            for number, variable in enumerate(variables, 1)
        }
        self._last = None, None

    def get_current_value(self, variable):
        number, value = self._values.get(id(variable), (None, None))
        if number is None:
            return super().get_current_value(variable)
        if self._last[0] != number:
            from_writer(number)
            whole = fetched(value)
            self._last = number, keras.ops.convert_to_tensor(whole)
        return self._last[1]
