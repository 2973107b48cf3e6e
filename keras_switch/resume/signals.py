"""Being told to stop while `fit` runs."""

import signal
import sys
import threading
from typing import Any

import keras

from keras_switch.ops.state import largest, process_count

# What `sysexits.h` calls a temporary failure: try again.
EXIT_CODE = 75
# Steps after which processes that train together ask each other.
_ASK_EVERY = 10


class StopSignals:
    """Notes SIGTERM and SIGINT, so that training can end at a step.

    Only the main thread of a process gets signals; elsewhere this does
    nothing. A second SIGINT acts as it did before, so that an impatient
    Ctrl-C gets through.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.due = False
        self._model: Any = None
        self._before: dict[int, Any] = {}

    def install(self, model: keras.Model) -> None:
        """Notes signals from now on, as long as `model.fit` runs."""
        self.restore()
        self.received, self.due = None, False
        self._model = model
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            _end_stale(signal.getsignal(number), model)
            before = signal.signal(number, self._note)
            self._before[number] = before or signal.SIG_DFL

    def poll(self, step: int) -> None:
        """Finds out whether to stop before a step: then `due` is true.

        Processes that train together stop before the same step, whichever of
        them was told to.
        """
        if process_count() > 1 and step % _ASK_EVERY == 0:
            self.received = largest(self.received or 0) or None
            self.due = self.received is not None
        elif process_count() == 1:
            self.due = self.received is not None

    def restore(self) -> None:
        """Puts back what was there before."""
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}
        self._model = None

    def exit_if_received(self) -> None:
        """Ends the process, if it was told to.

        Raises:
            SystemExit: with code 75.
        """
        if self.received is not None:
            name = signal.Signals(self.received).name
            print(f"{name}: stopped; to go on, start again.", file=sys.stderr)
            self.received, self.due = None, False
            raise SystemExit(EXIT_CODE)

    def _note(self, number, frame):
        impatient = number == self.received == signal.SIGINT
        # An error in `fit` ends training without a word to its callbacks.
        if impatient or not _is_fitting(self._model, frame):
            self.restore()
            signal.raise_signal(number)
            return
        self.received = number


def _end_stale(handler, model):
    """Ends the watch of a `fit` that an error ended, and frees its model."""
    owner = getattr(handler, "__self__", None)
    if isinstance(owner, StopSignals):
        again = owner._model is model
        if again or not _is_fitting(owner._model, sys._getframe()):
            owner.restore()


def _is_fitting(model, frame):
    while frame is not None:
        if frame.f_code.co_name == "fit":
            if frame.f_locals.get("self") is model:
                return True
        frame = frame.f_back
    return False
