"""Python in processes of its own, with as many devices as a test wants."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def start(
    module: str,
    arguments: dict[str, Any],
    devices: int = 1,
    backend: str = "jax",
) -> Any:
    """Starts `python -m module` with arguments as JSON.

    Args:
        module: Its `main` takes the arguments.
        arguments: What JSON can hold.
        devices: Virtual devices of the process, for JAX.
        backend: Of Keras.
    """
    command = [sys.executable, "-m", module, json.dumps(arguments)]
    return run(command, devices, backend)


def run(command: list[str], devices: int = 1, backend: str = "jax") -> Any:
    """Starts a command; see `start`."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
    }
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    """Where process 0 may listen to the others."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def finish(process: Any, timeout: float = 600) -> str:
    """Waits for a process; fails with what it said if it did."""
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        raise AssertionError(f"no end within {timeout} s:\n{said}") from None
    assert process.returncode == 0, said
    return said
