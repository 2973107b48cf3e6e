"""Runs fault cases, each in a process of its own, and writes what happened.

A suite is a module `tests/faults/<suite>.py` with a function
`cases(quick: bool) -> list[Case]` and, if all cases need the same files, a
function `prepare() -> None` that writes them into the working folder, which
the cases then find as `shared()`. Neither may run the library's operations
outside `prepare` and `Case.run`: what forks must have no threads.

Linux only: memory is read from `/proc`.
"""

import contextlib
import gc
import importlib
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple

from keras_switch_train import heap

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "faults.md"
_SHARED = "FAULTS_SHARED"
_FORK = multiprocessing.get_context("fork")
_MEGABYTE = 1 << 20
# How often the memory of a case is looked at, in seconds.
_POLL = 0.05


class Case(NamedTuple):
    """One fault.

    Attributes:
        name: What is wrong, in a few words.
        run: Does it, in a child process whose working folder is empty; raises
            AssertionError (or anything) if the fault was not survived.
        seconds: Wall limit; a case that takes longer is killed.
        megabytes: Memory it may take over what it starts with; `None`: any.
    """

    name: str
    run: Callable[[], None]
    seconds: float = 60
    megabytes: int | None = None


class Outcome(NamedTuple):
    """What became of a case; `note` says why it was not survived."""

    name: str
    survived: bool
    seconds: float
    megabytes: float
    note: str


def run_suite(suite: str, quick: bool = False, every: int = 1) -> list[Outcome]:
    """Runs each so many-th case and prints a line for each that failed."""
    module = importlib.import_module(f"tests.faults.{suite}")
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        folder = pathlib.Path(folder).resolve()
        os.environ[_SHARED] = str(folder / "shared")
        shared().mkdir()
        if hasattr(module, "prepare"):
            prepared = run_case(Case("prepare", module.prepare, 300), shared())
            if not prepared.survived:
                raise RuntimeError(f"{suite}: prepare: {prepared.note}")
        for number, case in enumerate(module.cases(quick)[::every]):
            own = folder / str(number)
            own.mkdir()
            outcomes.append(run_case(case, own))
            _print(suite, outcomes[-1])
    survived = sum(outcome.survived for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    print(
        f"{suite}: survived {survived}/{len(outcomes)} in {seconds:.0f} s",
        flush=True,
    )
    return outcomes


def shared() -> pathlib.Path:
    """The folder that the suite's `prepare` filled; cases only read it."""
    return pathlib.Path(os.environ[_SHARED])


def run_case(case: Case, folder: pathlib.Path) -> Outcome:
    """Runs a case in a child process whose working folder is `folder`."""
    receive, send = _FORK.Pipe(duplex=False)
    log = folder.with_name(f"{folder.name}.log")
    process = _FORK.Process(target=_child, args=(case, folder, log, send))
    start = time.monotonic()
    process.start()
    send.close()
    note, megabytes = _wait(case, process.pid, receive, start)
    seconds = time.monotonic() - start
    _end(process)
    receive.close()
    if note and log.is_file():
        print(log.read_text(errors="replace")[-4000:], file=sys.stderr)
    return Outcome(case.name, not note, seconds, megabytes, note)


def memory(field: str = "VmRSS", pid: int | str = "self") -> int:
    """Bytes of memory of a process: `"VmRSS"` now, `"VmHWM"` at its peak."""
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    for line in text.splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 0  # a process that has ended has none


def forget_peak() -> None:
    """Makes `memory("VmHWM")` the peak from now on."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")


@contextlib.contextmanager
def costs(seconds: float, megabytes: float) -> Iterator[None]:
    """Fails if the block takes longer, or more memory over what there is."""
    gc.collect()
    heap.release()  # or the block would take what is free and resident
    forget_peak()
    base, start = memory(), time.monotonic()
    yield
    taken = time.monotonic() - start
    peak = (memory("VmHWM") - base) / _MEGABYTE
    assert peak <= megabytes, f"it took {peak:.0f} MB"
    assert taken <= seconds, f"it took {taken:.2f} s"


def _wait(case, pid, receive, start):
    """Why the case failed, if it did, and the megabytes that it took."""
    base = None
    while True:
        ended = False
        if receive.poll(_POLL):
            try:
                kind, *values = receive.recv()
            except EOFError:
                kind, ended = "end", True
            if kind == "start":
                (base,) = values
            elif not ended:
                note, megabytes = values
                if not note and _too_much(case, megabytes):
                    note = f"took {megabytes:.0f} MB"
                return note, megabytes
        taken = (memory(pid=pid) - base) / _MEGABYTE if base else 0.0
        if ended:
            return "the process died", taken
        if _too_much(case, taken):
            return f"killed at {taken:.0f} MB", taken
        if time.monotonic() - start > case.seconds:
            return f"killed after {case.seconds:g} s", taken


def _too_much(case, megabytes):
    return case.megabytes is not None and megabytes > case.megabytes


def _end(process):
    """Ends a child and whatever it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.join()
    process.close()


def _child(case, folder, log, send):
    os.setsid()
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    forget_peak()
    base, note = memory(), ""
    send.send(("start", base))
    try:
        case.run()
    except BaseException as error:
        traceback.print_exc()
        first = (str(error).strip() or "no message").splitlines()[0]
        note = f"{type(error).__name__}: {first}"
    sys.stdout.flush()
    sys.stderr.flush()
    send.send(("end", note, (memory("VmHWM") - base) / _MEGABYTE))
    # Threads of a backend would be waited for otherwise.
    os._exit(0)


def _print(suite, outcome):
    if not outcome.survived:
        print(f"{suite}: NOT SURVIVED: {outcome.name}: {outcome.note}")


# === docs/faults.md ===

_INTRODUCTION = """\
# Faults

What was done to the library, and whether it survived: `python -m tests.faults
SUITE` runs a suite and replaces its section here. Each case runs in a process
of its own under a wall and a memory limit. Seconds and megabytes are those of
the whole case, its preparation included.
"""


def write_table(
    suite: str,
    outcomes: list[Outcome],
    backend: str,
    path: pathlib.Path = TABLE,
    every: int = 1,
) -> None:
    """Writes a suite's section into the table, in place of an older one."""
    text = path.read_text() if path.is_file() else _INTRODUCTION
    introduction, *sections = text.rstrip().split("\n## ")
    title = f"{suite}, {backend}"
    sections = [s for s in sections if s.partition("\n")[0] != title]
    sections = sorted(
        [*sections, f"{title}\n\n{_section(suite, outcomes, every)}"]
    )
    parts = [part.strip() for part in (introduction, *sections)]
    path.write_text("\n\n## ".join(parts) + "\n")


def _section(suite, outcomes, every):
    survived = sum(outcome.survived for outcome in outcomes)
    flag = f" --every={every}" if every > 1 else ""
    lines = [
        f"`python -m tests.faults {suite}{flag}`: survived "
        f"{survived}/{len(outcomes)}.",
        "",
        "| case | survived | s | MB |",
        "|---|---|---:|---:|",
    ]
    for outcome in outcomes:
        name = outcome.name.replace("|", "\\|")
        verdict = "yes" if outcome.survived else f"**no**: {outcome.note}"
        size = f"{outcome.seconds:.1f} | {max(outcome.megabytes, 0):.0f}"
        lines.append(f"| {name} | {verdict} | {size} |")
    return "\n".join(lines)
