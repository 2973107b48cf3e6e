"""Examples, and their sides: no input is on two of them."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple


class Example(NamedTuple):
    """What a model reads and what it should answer, with single spaces.

    Args:
        input: before the task's template.
        target: the answer.
    """

    input: str
    target: str


class Row(NamedTuple):
    """An example on its way to a side.

    Args:
        input: as in `Example`.
        target: as in `Example`.
        group: rows of one group are on one side.
    """

    input: str
    target: str
    group: str


class Splits(NamedTuple):
    """The examples of a task.

    Args:
        train: to train on.
        validation: to choose a checkpoint by.
        test: to report.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]

    def digest(self) -> str:
        """SHA-256 of all examples and their sides, 64 hex digits."""
        digest = hashlib.sha256()
        for side in self:
            digest.update(len(side).to_bytes(8, "big"))
            for example in side:
                for text in example:
                    # Lengths in front: two splittings never look the same.
                    data = text.encode("utf-8", "surrogatepass")
                    digest.update(len(data).to_bytes(8, "big"))
                    digest.update(data)
        return digest.hexdigest()


SIDES = Splits._fields


def split_rows(
    rows: Iterable[Row], validation: float = 0.05, test: float = 0.05
) -> Splits:
    """Splits rows by the hash of their groups.

    A group's side depends on nothing but its name: it stays when rows are
    added or reordered. Of rows with the same input, capitals aside, the first
    is kept.

    Args:
        rows: the rows.
        validation: the expected part of the groups for validation.
        test: the expected part of the groups for the test.

    Returns:
        The sides, in the order given.

    Raises:
        ValueError: if the parts are not above 0 with a sum below 1, or a side
            comes out empty.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise ValueError(
            "validation and test must be above 0 and their sum below 1; "
            f"received {validation} and {test}."
        )
    sides = Splits([], [], [])
    for row in unique_rows(rows):
        place = _hash_fraction(row.group)
        side = 2 if place < test else 1 if place < test + validation else 0
        sides[side].append(Example(row.input, row.target))
    return check_sides(sides)


def split_as_given(sides: dict[str, Iterable[Row]]) -> Splits:
    """Sides that the data itself has, without what is on two of them.

    Args:
        sides: rows by `"train"`, `"validation"` and `"test"`. A row whose
            input is on a later side, too, is dropped from the earlier one, so
            that the test stays as it is.

    Returns:
        The sides.

    Raises:
        ValueError: if one of them is empty.
    """
    seen, kept = set(), []
    for name in reversed(SIDES):
        rows = unique_rows(sides.get(name, ()))
        rows = [row for row in rows if _key(row) not in seen]
        seen.update(_key(row) for row in rows)
        kept.append([Example(row.input, row.target) for row in rows])
    return check_sides(Splits(*reversed(kept)))


def unique_rows(rows: Iterable[Row]) -> list[Row]:
    """White space to single spaces; no empty texts, no input twice.

    Args:
        rows: the rows.

    Returns:
        The first row with each input, in the order given.
    """
    unique = {}
    for row in rows:
        row = Row(*(" ".join(text.split()) for text in row))
        if row.input and row.target:
            unique.setdefault(_key(row), row)
    return list(unique.values())


def check_sides(sides: Splits) -> Splits:
    """Refuses sides of which one is empty.

    Args:
        sides: the sides.

    Returns:
        The same.

    Raises:
        ValueError: with how many examples there are.
    """
    if not all(sides):
        counts = ", ".join(
            f"{len(side)} for {name}"
            for name, side in zip(SIDES, sides, strict=True)
        )
        raise ValueError(
            "the examples must fill all sides of the split (train, validation "
            f"and test); received {counts}. Give more examples, or say in a "
            "column called split on which side each is."
        )
    return sides


def _key(row):
    return row.input.casefold()


def _hash_fraction(text):
    data = text.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(data, digest_size=8, person=b"task").digest()
    return int.from_bytes(digest, "big") / 2**64
