"""Tasks of Debian's package descriptions: one example a source package.

Packages of one source share most of their text, and so do sources of several
versions: the split is by source without versions. All tasks here share it, so
that the test of one is not trained on by another.
"""

import os
from collections.abc import Callable

from keras_switch.data.package_descriptions import (
    Description,
    package_descriptions,
    short_and_long,
    source_family,
)
from keras_switch.tasks.splits import Row, Splits, split_rows


def load_summary(cache_dir: str | os.PathLike | None = None) -> Splits:
    """From the long description to the short one.

    Args:
        cache_dir: see `keras_switch.data.package_descriptions`.

    Returns:
        The sides; a package without a long description is left out.

    Raises:
        As `package_descriptions`.
    """

    def row(description):
        short, long = short_and_long(description.texts["en"])
        return long, short

    return _load(row, cache_dir)


def load_section(cache_dir: str | os.PathLike | None = None) -> Splits:
    """From the description to the archive's section, of about 60.

    Args:
        cache_dir: see `keras_switch.data.package_descriptions`.

    Returns:
        The sides.

    Raises:
        As `package_descriptions`.
    """

    def row(description):
        return _sentences(description.texts["en"]), description.section

    return _load(row, cache_dir)


def translation_loader(
    language: str,
) -> Callable[[str | os.PathLike | None], Splits]:
    """Loads English descriptions and their translations.

    Args:
        language: `"de"` or `"fr"`.

    Returns:
        A loader, as the other functions here.
    """

    def row(description):
        english = description.texts["en"]
        other = description.texts.get(language, "")
        # Some of those that count as translated repeat the English text.
        if short_and_long(english)[1] == short_and_long(other)[1]:
            return "", ""
        return _sentences(english), _sentences(other)

    def load(cache_dir: str | os.PathLike | None = None) -> Splits:
        return _load(row, cache_dir)

    return load


def _sentences(text):
    short, long = short_and_long(text)
    if short and long and short[-1] not in ".!?":
        short += "."
    return f"{short} {long}".strip()


def _load(row, cache_dir):
    return split_rows(_rows(package_descriptions(cache_dir), row))


def _rows(
    descriptions: list[Description],
    row: Callable[[Description], tuple[str, str]],
) -> list[Row]:
    """The first package of each source that has both texts."""
    rows = {}
    for description in descriptions:
        text, target = row(description)
        if text and target and description.source not in rows:
            family = source_family(description.source)
            rows[description.source] = Row(text, target, family)
    return list(rows.values())
