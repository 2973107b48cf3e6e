"""All checks: ruff, bandit, then pytest once for each backend.

    python -m tests

Every backend gets processes of its own, because Keras chooses its backend when
it is imported. Arguments are handed to pytest:
`python -m tests tests/layers -k capacity`.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_NOTHING_CHOSEN = 5  # pytest's exit code
_MOST_BYTES = 4e9  # of compiled programs
ROOT = Path(__file__).resolve().parents[1]


def run(title: str, command: list[str], **environment: str) -> bool:
    """Runs one check in the repository root and says how it went."""
    print(f"\n== {title}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = subprocess.call(command, cwd=ROOT, env={**os.environ, **environment})
    if code == _NOTHING_CHOSEN and len(sys.argv) > 1:
        code = 0  # the arguments name tests of other runs
    verdict = "passed" if code == 0 else f"FAILED, exit code {code}"
    print(
        f"== {title}: {verdict}, {time.monotonic() - start:.0f} s", flush=True
    )
    return code == 0


def programs_folder() -> Path:
    """Where JAX keeps what it compiled, from one run of the tests to the next.

    `$KERAS_SWITCH_TEST_CACHE`, or else in `~/.cache`; made anew when it has
    grown too large. It may be deleted at any time.
    """
    root = os.environ.get("KERAS_SWITCH_TEST_CACHE")
    root = Path(root or "~/.cache/keras_switch/tests").expanduser()
    # Programs are for the instructions of one processor.
    cpu = Path("/proc/cpuinfo")
    flags = platform.processor() + platform.machine()
    if cpu.exists():
        lines = cpu.read_text(errors="replace").splitlines()
        flags += next((li for li in lines if li.startswith("flags")), "")
    name = hashlib.sha256(flags.encode()).hexdigest()[:16]
    folder = root / f"programs-{name}"
    folder.mkdir(parents=True, exist_ok=True)
    if sum(file.stat().st_size for file in folder.iterdir()) > _MOST_BYTES:
        shutil.rmtree(folder)
        folder.mkdir()
    return folder


def _runs(programs: Path) -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Title, arguments of pytest and environment of each run of it."""
    # Tests compile the same small models again and again.
    shared = {
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    plain = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    # What no backend computes is tested once, where nothing compiles.
    once = "not any_backend"
    for title, mark, environment in (
        ("jax", f"{once} and not optimized", {**shared, **plain}),
        ("jax, optimized", f"{once} and optimized", shared),
        ("tensorflow", once, {}),
        ("torch", "", {}),
    ):
        backend = title.partition(",")[0]
        yield (
            f"pytest on {title}",
            ["-m", mark] if mark else [],
            {"KERAS_BACKEND": backend, **environment},
        )


def main(arguments: list[str]) -> int:
    """Returns 0 if every check passed."""
    python = [sys.executable, "-m"]
    results = {
        "ruff check": run("ruff check", [*python, "ruff", "check", "."]),
        "ruff format": run(
            "ruff format", [*python, "ruff", "format", "--check", "."]
        ),
        "bandit": run(
            "bandit",
            [*python, "bandit", "-q", "-c", "pyproject.toml"]
            + ["-r", "keras_switch", "train"],
        ),
    }
    for title, marks, environment in _runs(programs_folder()):
        results[title] = run(
            title,
            [*python, "pytest", "-q", "-n", "2", *marks, *arguments],
            # Two workers on two cores: more threads would only wait.
            OMP_NUM_THREADS="1",
            TF_CPP_MIN_LOG_LEVEL="2",
            **environment,
        )
    print()
    for title, passed in results.items():
        print(f"{title}: {'passed' if passed else 'FAILED'}")
    return 0 if all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
