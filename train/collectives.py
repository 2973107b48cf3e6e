"""What a compiled program of XLA sends between devices."""

import re
from collections.abc import Sequence
from typing import NamedTuple

KINDS = (
    "all-to-all",
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "collective-permute",
)
_BITS = {"pred": 8, "bf16": 16}
_INSTRUCTION = re.compile(
    rf"\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({'|'.join(KINDS)})(-start)?\("
)
# Whose beginning, where it is apart from its end, has both as its result.
_WITH_OPERANDS = ("all-gather", "collective-permute")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


class Collective(NamedTuple):
    """One instruction that all devices take part in."""

    kind: str  # of `KINDS`
    bytes: int  # of its result on one device
    where: str  # the operation it came from


def collectives(program: str) -> list[Collective]:
    """Finds the collectives of a program.

    Args:
        program: The text of a compiled module, split for one device.

    Returns:
        In the order of the text.
    """
    found = []
    for line in program.splitlines():
        match = _INSTRUCTION.match(line)
        if match:
            shapes, kind, starts = match.groups()
            where = re.search(r'op_name="([^"]*)"', line)
            parts = [p for p in _SHAPE.findall(shapes) if p != ("u32", "")]
            if starts and kind in _WITH_OPERANDS:
                parts = parts[len(parts) // 2 :]
            size = sum(_bytes(*part) for part in parts)
            found.append(Collective(kind, size, where[1] if where else ""))
    return found


def _bytes(dtype, dims):
    bits = _BITS.get(dtype) or int(re.sub(r"\D", "", dtype))
    for dim in filter(None, dims.split(",")):
        bits *= int(dim)
    return bits // 8


def by_kind(
    found: Sequence[Collective],
) -> dict[str, tuple[int, int]]:
    """How many there are of each kind, and their bytes on one device.

    Args:
        found: From `collectives`.
    """
    return {
        kind: (
            sum(c.kind == kind for c in found),
            sum(c.bytes for c in found if c.kind == kind),
        )
        for kind in KINDS
    }
