"""Calls of a function under the profiler of the backend it computes with.

Names each backend's profiler, and asks for none: the caller says which it is.
"""

import glob
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from keras_switch_train import profile_names, profile_spans

_POOL = "ThreadpoolListener::"
_BETWEEN = "between operations"


def profile(function: Callable, times: int, backend: str) -> dict[str, Any]:
    """Traces some calls, after two that warm up and some without a trace.

    Args:
        function: Of no arguments; it waits for what it computes.
        times: Calls to trace, and calls before them.
        backend: What it computes with: jax, tensorflow or torch.

    Returns:
        JSON values, all of one call: `ms` (median, not traced), `traced ms`,
        `cpu ms` (of all cores, traced), and `operations`: [group, name, where,
        wall ms, thread ms, count], the longest first. Of each moment a thread
        has an equal part in wall ms, which add up to `traced ms`, and the whole
        in thread ms. A thread that waits inside of an operation, or for a core,
        counts as well. On torch only the calling thread is traced.

    Raises:
        ValueError: if the backend has no profiler here.
        RuntimeError: if the trace shows no operation.
    """
    if backend not in _TRACERS:
        raise ValueError(
            f"backend must be one of {', '.join(_TRACERS)}; received "
            f"{backend!r}."
        )
    seconds = [_seconds(function) for _ in range(times + 2)][2:]
    walls, cpu = [], []

    def calls():
        start = time.process_time()
        walls.extend(_seconds(function) for _ in range(times))
        cpu.append(time.process_time() - start)

    totals = _TRACERS[backend](calls)
    _, runtime, _ = totals.pop(profile_spans.RUNTIME, (0.0, 0.0, 0))
    if not totals:
        raise RuntimeError(
            f"The trace of {backend} must show operations; it shows none on "
            "the host. Only operations of a CPU are read."
        )
    rest = max(0.0, sum(walls) * 1e9 - sum(t.wall for t in totals.values()))
    label = profile_names.Operation("runtime", _BETWEEN, "")
    totals[label] = profile_spans.Time(rest, runtime, 0)
    operations = [
        [*label, wall / 1e6 / times, thread / 1e6 / times, count / times]
        for label, (wall, thread, count) in totals.items()
    ]
    return {
        "ms": statistics.median(seconds) * 1e3,
        "traced ms": statistics.mean(walls) * 1e3,
        "cpu ms": cpu[0] / times * 1e3,
        "operations": sorted(operations, key=lambda row: -row[3]),
    }


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _of_jax(calls):
    import jax

    # Names of what Python does are not needed, and cost time.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            calls()
        threads = list(_threads(folder, _xla_label))
    names = _xla_names(
        {
            event.label[0]
            for events in threads
            for event in events
            if isinstance(event.label, tuple)
        }
    )

    def named(event):
        if not isinstance(event.label, tuple):
            return event
        return event._replace(label=names(*event.label))

    return profile_spans.totals(
        [list(map(named, events)) for events in threads]
    )


def _xla_label(name, stats):
    """(program, instruction), or what time without one is."""
    if "hlo_op" in stats:
        return stats["hlo_module"], stats["hlo_op"]
    if name.endswith(("(wait for completion)", "::Await")):
        return profile_spans.WAITING
    return profile_spans.RUNTIME if name == "ThunkExecutor::Execute" else None


def _xla_names(programs):
    """A function that names an instruction of some programs."""
    from jax.extend import backend

    known = {}
    for executable in backend.get_backend().live_executables():
        for module in executable.hlo_modules():
            if module.name in programs:
                found = profile_names.of_xla(module.to_string())
                known.setdefault(module.name, {}).update(found)

    def named(program, instruction):
        found = known.get(program, {}).get(instruction)
        return found or profile_names.unknown_of_xla(instruction)

    return named


def _of_tensorflow(calls):
    import tensorflow as tf

    options = tf.profiler.experimental.ProfilerOptions(python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options=options):
            calls()
        return profile_spans.totals(_threads(folder, _tensorflow_label))


def _tensorflow_label(name, stats):
    if name == "ExecutorState::Process":
        return profile_spans.RUNTIME
    return profile_names.of_tensorflow(name)


def _threads(
    folder: str, label: Callable
) -> Iterator[list[profile_spans.Event]]:
    """The events of each thread of the host, from the file of a profiler.

    JAX reads what TensorFlow writes, too: it is the same profiler.
    """
    from jax.profiler import ProfileData

    (path,) = glob.glob(os.path.join(folder, "**/*.xplane.pb"), recursive=True)
    for plane in ProfileData.from_file(path).planes:
        if plane.name == "/host:CPU":
            for line in plane.lines:
                yield list(_events(line.events, label))


def _events(events, label):
    open_regions = []
    for event in events:  # in the order of their starts
        start, name, stats = event.start_ns, event.name, dict(event.stats)
        if name == f"{_POOL}Record":
            yield profile_spans.Event(start, start, gives=stats["_p"])
        elif name == f"{_POOL}StartRegion":
            open_regions.append((start, stats["_c"]))
        elif name == f"{_POOL}StopRegion":
            if open_regions:  # else it was open before the trace
                begun, work = open_regions.pop()
                yield profile_spans.Event(begun, start, takes=work)
        else:
            end = start + event.duration_ns
            yield profile_spans.Event(start, end, label(name, stats))


def _of_torch(calls):
    # Below this level its profiler says that it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch
    from torch import profiler

    # What is in no operation is Python's time, and that of the tracer.
    with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as trace:
        with torch.profiler.record_function(_BETWEEN):
            calls()
    totals = {}
    for event in trace.events():
        inside, parent = [], event.cpu_parent
        while parent is not None:
            inside.append(parent.name)
            parent = parent.cpu_parent
        label = profile_names.of_torch(event.name, inside[:-1])
        if event.name == _BETWEEN:
            label = profile_spans.RUNTIME
        ns, _, count = totals.get(label, (0.0, 0.0, 0))
        ns += event.self_cpu_time_total * 1e3
        totals[label] = profile_spans.Time(ns, ns, count + 1)
    return totals


_TRACERS = {
    "jax": _of_jax,
    "tensorflow": _of_tensorflow,
    "torch": _of_torch,
}
