"""Where training is in its data."""

import collections
import copy
import json
from typing import Any, Protocol

# States of a grain iterator that are kept: more than any trainer reads ahead.
_READ_AHEAD = 256


class Steps(Protocol):
    """Data with random access, such as `keras_switch.data.Pipeline`."""

    def dataset(self, start_step: int) -> Any:
        """Batches from a step on, without end."""

    def fingerprint(self) -> str:
        """The same for the same batches, and for no others."""


class StepData:
    """The position in data with random access is the step alone.

    Args:
        data: See `Steps`.
    """

    def __init__(self, data: Steps) -> None:
        self._data = data

    def dataset(self, step: int, state: Any) -> Any:
        """Batches from a step on."""
        return self._data.dataset(start_step=step)

    def state(self, step: int) -> Any:
        """What else must be saved: nothing."""
        return None

    def fingerprint(self) -> str | None:
        """A digest of the data."""
        return self._data.fingerprint()


class GrainData:
    """The position in a `grain.IterDataset` is the state of its iterator.

    `fit` may read ahead of what it trains on, so the state is noted after
    each batch.

    Args:
        data: Its iterators have `get_state` and `set_state`.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._states: dict[int, Any] = {}

    def dataset(self, step: int, state: Any) -> Any:
        """Batches from a step on."""
        return _noting(self._data, step, state, self._new_states)

    def state(self, step: int) -> Any:
        """The state of the iterator when it had given `step` batches."""
        return json.loads(json.dumps(self._states[step], default=_to_list))

    def fingerprint(self) -> str | None:
        """Nothing is known of what is in it."""
        return None

    def _new_states(self):
        # The iterator made last is the one that trains: earlier ones looked
        # at shapes.
        self._states = collections.OrderedDict()
        return self._states


def source_of(data: Any) -> StepData | GrainData | None:
    """How to find one's way in some data.

    Args:
        data: `None`, data with `dataset(start_step)` and `fingerprint()`, or a
            `grain.IterDataset`.

    Returns:
        `None` for `None`.

    Raises:
        ValueError: for anything else.
    """
    if data is None:
        return None
    if hasattr(data, "dataset") and hasattr(data, "fingerprint"):
        return StepData(data)
    import grain

    if isinstance(data, grain.IterDataset):
        return GrainData(data)
    raise ValueError(
        "data must be a keras_switch.data.Pipeline, an object with its "
        "dataset(start_step) and fingerprint(), or a grain.IterDataset; "
        f"received a {type(data).__name__}. With data=None, training resumes "
        "at the start of an epoch."
    )


def _to_list(value):
    """NumPy's numbers and arrays."""
    return value.tolist()


def _noting(dataset, step, state, new_states):
    """A `grain.IterDataset` whose iterators note their states."""
    import grain

    class Iterator(grain.DatasetIterator):
        def __init__(self, parent):
            super().__init__(parent)
            if state is not None:
                parent.set_state(state)
            self._step = step
            self._states = new_states()
            self._note()

        def __next__(self):
            batch = next(self._parent)
            self._step += 1
            self._note()
            return batch

        def get_state(self):
            return self._parent.get_state()

        def set_state(self, value):
            self._parent.set_state(value)

        def _note(self):
            # Some iterators go on writing to the dict that they returned.
            value = copy.deepcopy(self._parent.get_state())
            self._states[self._step] = value
            if len(self._states) > _READ_AHEAD:
                self._states.popitem(last=False)

    class Dataset(grain.IterDataset):
        def __iter__(self):
            return Iterator(iter(self._parent))

        def __str__(self):
            return "batches whose place is noted"

    return Dataset(dataset)
