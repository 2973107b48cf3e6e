"""Commands that each train something, one on each core at a time."""

import os
import subprocess
import time
from collections.abc import Callable, Sequence

from absl import logging

from keras_switch_train import cores


class Process:
    """A command that runs on one core, and writes to a log.

    Args:
        folder: Where the log is, `log.txt`; names the process too.
        command: The command line.
        core: Number of the core.
    """

    def __init__(self, folder: str, command: Sequence[str], core: int) -> None:
        self._folder = folder
        self._log = os.path.join(folder, "log.txt")
        self.code = None
        logging.info("%s: on core %d, see %s", folder, core, self._log)
        with open(self._log, "a") as log, cores.pinned(core):
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT
            )

    def ended(self) -> bool:
        """Whether it has; `code` is its exit code then."""
        self.code = self._process.poll()
        return self.code is not None

    def terminate(self) -> None:
        """Asks it to stop."""
        self._process.terminate()

    def wait(self) -> None:
        """Waits for its end."""
        self._process.wait()

    def tail(self) -> str:
        """The last lines of its log."""
        with open(self._log, errors="replace") as log:
            lines = log.read().splitlines()[-5:]
        return "\n".join([f"{self._folder}, exit code {self.code}:", *lines])


def run(
    starts: Sequence[Callable[[int], Process]], free: Sequence[int]
) -> list[Process]:
    """Starts one after another, whenever a core is free; waits for all.

    Told to stop, it tells those that run to stop, and waits for them.

    Args:
        starts: Each starts a process on the core of a number.
        free: Numbers of the cores.

    Returns:
        The processes that failed.
    """
    running, failed = {}, []
    starts = list(starts)
    try:
        while starts or running:
            for core in free:
                if starts and core not in running:
                    running[core] = starts.pop(0)(core)
            time.sleep(0.2)
            for core, process in list(running.items()):
                if process.ended():
                    failed += [process] if process.code else []
                    del running[core]
    finally:
        # SIGTERM or an error: each saves its step, and goes on another time.
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    return failed
