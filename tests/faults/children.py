"""What a case runs in processes of its own, forked."""

import os
import pathlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence

import keras

from keras_switch.resume import ResumableCheckpoint


def start(run: Callable[[], None]) -> int:
    """Forks a process that runs a function; returns its number.

    What forks must have no threads: no backend may have computed anything.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait(pid: int) -> int:
    """Its exit code when it has ended, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def keep_compilations(folder: pathlib.Path) -> None:
    """Most of a short run on JAX would be compiling the same again."""
    if keras.backend.backend() != "jax":
        return
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def wait_for_checkpoints() -> None:
    """From now on each is on the disk before training goes on."""
    save = ResumableCheckpoint._save

    def waiting(checkpoint, stopped):
        save(checkpoint, stopped)
        checkpoint._wait_for_writer()

    ResumableCheckpoint._save = waiting


def wait_together(pids: Sequence[int], grace: float) -> list[int]:
    """Waits until all have ended, or one of them not well.

    Args:
        pids: Of processes that need each other.
        grace: Seconds that the others get then, before they are killed.

    Returns:
        Exit codes as those of `wait`.
    """
    codes: dict[int, int] = {}
    deadline = None
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        if deadline is None and any(codes.values()):
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.02)
    return [codes[pid] for pid in pids]
