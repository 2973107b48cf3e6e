"""Descriptions of Debian's packages in several languages, with sections."""

import datetime
import gzip
import json
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from absl import logging

from keras_switch import files
from keras_switch.data.apt import (
    AptError,
    debian_indexes,
    private_apt,
    reason,
    run_apt,
    stanzas,
)
from keras_switch.data.debian import check_digest
from keras_switch.data.files import cache_directory

LANGUAGES = ("en", "de", "fr")
_TEXTS = "descriptions.jsonl.gz"
_RECORD = "descriptions.json"


class Description(NamedTuple):
    """What the archive says of a package.

    Args:
        package: its name.
        source: the source package that it is built from; packages of one
            source share most of their text.
        section: the archive's label, such as `"python"`; `""` if none.
        texts: by language, the short description on the first line, the long
            one behind it as a control file has it.
    """

    package: str
    source: str
    section: str
    texts: dict[str, str]


def package_descriptions(
    cache_dir: str | os.PathLike | None = None,
) -> list[Description]:
    """Descriptions of Debian's packages; apt fetches them the first time.

    apt uses the machine's own sources and keys, but lists and a cache in a
    temporary folder; about 50 MB are fetched, and 15 MB kept in the cache.
    Debian's archive is not frozen: another day may give other text, and
    `package_descriptions_record` says which it is.

    Args:
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        By source, and within it the package of the source's name first; of a
        source's packages with the same text, one.

    Raises:
        RuntimeError: if apt is missing, or cannot fetch (no network, say).
        ValueError: if the file in the cache is not the one that was fetched.
    """
    folder = _folder(cache_dir)
    if not folder.exists():
        _fetch(folder)
    path = folder / _TEXTS
    check_digest(path, package_descriptions_record(cache_dir)["sha256"])
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Description(**json.loads(line)) for line in file]


def package_descriptions_record(
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Where the descriptions in the cache come from.

    Args:
        cache_dir: as `package_descriptions`.

    Returns:
        The time they were fetched, the digest of their file, and suite,
        version and digest of each index of the archive.

    Raises:
        FileNotFoundError: if they were not fetched yet.
    """
    path = _folder(cache_dir) / _RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} must be there; received no file. Call "
            "package_descriptions first."
        )
    return files.read_json(path)


def _folder(cache_dir):
    return cache_directory(cache_dir) / "package-descriptions"


def _fetch(folder):
    logging.info("fetching the descriptions of Debian's packages")
    with (
        private_apt(folder, LANGUAGES) as configuration,
        files.atomic_folder(folder) as new,
    ):
        said = run_apt(configuration, "apt-get", "-qq", "update").stderr
        indexes = debian_indexes(configuration)
        found = join_descriptions(
            [index.path for index in indexes if index.kind == "Packages"],
            [index.path for index in indexes if index.kind == "Translations"],
        )
        if not found:
            raise AptError(
                "the sources have no descriptions of the packages of Debian "
                f"main. apt-get update: {reason(said)}"
            )
        _write(found, indexes, new)


def _write(found, indexes, folder):
    lines = "".join(
        json.dumps(description._asdict(), ensure_ascii=False) + "\n"
        for description in found
    )
    # No time stamp: the same descriptions have the same digest.
    (folder / _TEXTS).write_bytes(gzip.compress(lines.encode(), mtime=0))
    record = {
        "fetched": datetime.datetime.now(datetime.UTC).isoformat(),
        "sha256": files.sha256(folder / _TEXTS),
        "indexes": [
            {
                "suite": index.suite,
                "version": index.version,
                "index": index.kind,
                "sha256": files.sha256(index.path),
            }
            for index in indexes
        ],
    }
    text = json.dumps(record, indent=1)
    (folder / _RECORD).write_text(text, encoding="utf-8")


def join_descriptions(
    packages: Iterable[str | os.PathLike],
    translations: Iterable[str | os.PathLike],
    languages: Sequence[str] = LANGUAGES,
) -> list[Description]:
    """Joins the archive's indexes by the digest of the English text.

    Args:
        packages: indexes of packages.
        translations: indexes of descriptions.
        languages: which to take, English first; a package without English
            text is left out.

    Returns:
        See `package_descriptions`.
    """
    texts: dict[str, dict[str, str]] = {}
    for stanza in stanzas(translations):
        for language in languages:
            text = stanza.get(f"Description-{language}")
            if text:
                its_texts = texts.setdefault(stanza["Description-md5"], {})
                its_texts.setdefault(language, text)
    found = {}
    for stanza in stanzas(packages):
        name, digest = stanza["Package"], stanza.get("Description-md5")
        source = stanza.get("Source", name).split()[0]
        rank = (name != source, name)
        if languages[0] not in texts.get(digest, {}):
            continue
        if (source, digest) in found and found[source, digest][0] <= rank:
            continue
        section = stanza.get("Section", "").rpartition("/")[2]
        description = Description(name, source, section, texts[digest])
        found[source, digest] = (rank, description)
    ordered = sorted(found.values(), key=lambda pair: (pair[1].source, pair[0]))
    return [description for _, description in ordered]


def short_and_long(text: str) -> tuple[str, str]:
    """The two parts of a description, with single spaces.

    Args:
        text: of one language, from `Description.texts`.

    Returns:
        `(short, long)`; the long one is `""` where there is none.
    """
    short, _, long = text.partition("\n")
    # A line with only a full stop separates paragraphs.
    long = re.sub(r"^ \.$", "", long, flags=re.MULTILINE)
    return " ".join(short.split()), " ".join(long.split())


def source_family(source: str) -> str:
    """A source package's name without versions: `gcc-13` -> `gcc`.

    Sources of several versions share their text; a split by family keeps
    them on one side.

    Args:
        source: the name.

    Returns:
        The name without digits and what joins them; the whole name where
        nothing else is in it.
    """
    return re.sub(r"[-_.]?\d[\d.]*", "", source) or source
