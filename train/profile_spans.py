"""Whose time it is: the events of a trace, nested on threads and handed on.

An event inside another one takes its time from it, so nothing counts twice. A
region is what a thread of a pool does with work that another thread gave it:
what has no name there belongs to the operation that gave it.
"""

import collections
import dataclasses
from collections.abc import Hashable, Iterable
from typing import NamedTuple

# Labels of time in no operation. Waiting is not counted.
RUNTIME = "runtime"
WAITING = "waiting"


class Event(NamedTuple):
    """Something that a thread did."""

    start: float  # ns
    end: float
    label: Hashable | None = None  # None: part of what it is in
    gives: int | None = None  # the number of the work it gives to a pool
    takes: int | None = None  # a region: the number of the work it does


class Time(NamedTuple):
    """What has a label."""

    wall: float  # ns; a moment goes to all threads in equal parts
    thread: float  # ns; a moment counts for each thread
    count: int  # events


@dataclasses.dataclass(eq=False)
class _Span:
    event: Event
    parent: "_Span | None"
    end: float
    seen: float  # ns; where the rest of its own time begins
    own: list[tuple[float, float]]  # when no event inside it runs


def totals(threads: Iterable[Iterable[Event]]) -> dict[Hashable, Time]:
    """Adds up what threads did.

    Args:
        threads: The events of each, in any order.

    Returns:
        The time of each label. What no label and no other thread explains is
        left out; in a region it is `RUNTIME`.
    """
    spans = [span for events in threads for span in _nested(events)]
    givers = {
        span.event.gives: span for span in spans if span.event.gives is not None
    }
    thread, count = collections.Counter(), collections.Counter()
    pieces = []
    for span in spans:
        label = _owner(span, givers)
        if label in (None, WAITING):
            continue
        count[label] += span.event.label is not None
        for start, end in span.own:
            thread[label] += end - start
            pieces.append((start, end, label))
    wall = _shared(pieces)
    return {
        label: Time(wall[label], thread[label], count[label]) for label in count
    }


def _nested(events):
    """Spans of one thread, each with the one it is in."""
    spans, stack = [], []

    def close():
        span = stack.pop()
        span.own.append((span.seen, span.end))
        if stack:
            stack[-1].seen = span.end

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        while stack and stack[-1].end <= event.start:
            close()
        parent, end = None, event.end
        if stack:
            parent = stack[-1]
            parent.own.append((parent.seen, event.start))
            end = min(end, parent.end)  # later by rounding
        stack.append(_Span(event, parent, end, event.start, []))
        spans.append(stack[-1])
    while stack:
        close()
    return spans


def _owner(span, givers):
    """The label that a span's own time belongs to."""
    region = False
    while span is not None:
        if span.event.label is not None:
            return span.event.label
        region = region or span.event.takes is not None
        span = givers.get(span.event.takes, span.parent)
    return RUNTIME if region else None


def _shared(pieces):
    """By label: ns, of which each moment goes to what runs in equal parts."""
    edges = [(start, 1, label) for start, _, label in pieces]
    edges += [(end, -1, label) for _, end, label in pieces]
    edges.sort(key=lambda edge: edge[0])
    wall, active, running, before = collections.Counter(), {}, 0, 0.0
    for moment, change, label in edges:
        for name, number in active.items():
            wall[name] += (moment - before) * number / running
        before = moment
        running += change
        active[label] = active.get(label, 0) + change
        if not active[label]:
            del active[label]
    return wall
