"""Fault suites, by command.

    python -m tests.faults presets imports
    KERAS_BACKEND=torch python -m tests.faults numbers

Without `--quick`, docs/faults.md gets what happened. Expect minutes a suite.
"""

import argparse
import os
import pathlib
import sys
import tempfile


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 if every case of every suite was survived."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with tempfile.TemporaryDirectory(prefix="faults-cache-") as folder:
        # Every child compiles the same small things: on JAX, the first one
        # does it for all.
        os.environ |= {
            "JAX_COMPILATION_CACHE_DIR": folder,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        return _run(arguments)


def _run(arguments):
    import keras

    from tests.faults import runner

    folder = pathlib.Path(__file__).parent
    suites = sorted(
        path.stem
        for path in folder.glob("*.py")
        if "\ndef cases(" in path.read_text(encoding="utf-8")
    )
    parser = argparse.ArgumentParser(prog="python -m tests.faults")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=str(suites))
    parser.add_argument("--quick", action="store_true", help="a part of each")
    parser.add_argument(
        "--every", type=int, default=1, help="each so many-th case"
    )
    options = parser.parse_args(arguments)
    if options.every < 1:
        parser.error(f"--every must be at least 1; received {options.every}.")
    unknown = sorted(set(options.suites) - set(suites))
    if unknown or not (options.suites or options.quick):
        parser.error(f"SUITE must be of {suites}; received {options.suites}.")
    if not options.suites and keras.backend.backend() != "jax":
        print("kill_together is left out: it needs KERAS_BACKEND=jax")
        suites.remove("kill_together")
    failed = 0
    for suite in options.suites or suites:
        outcomes = runner.run_suite(suite, options.quick, options.every)
        failed += sum(not outcome.survived for outcome in outcomes)
        if not options.quick:
            backend = keras.backend.backend()
            runner.write_table(suite, outcomes, backend, every=options.every)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
