"""Files of the Debian archive, fetched through apt; nothing is installed."""

import datetime
import gzip
import io
import json
import os
import pathlib
import re
import tarfile
import urllib.parse
from collections.abc import Mapping
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

_DESCRIPTIONS = "descriptions.json.gz"
_RECORD = "debian.json"


class DebianFiles(NamedTuple):
    """What was fetched.

    Args:
        packages: the `.deb` file of each label.
        descriptions: a JSON file, see `read_descriptions`; or None.
        record: what the files are: names, versions, SHA-256 digests, date.
    """

    packages: dict[str, pathlib.Path]
    descriptions: pathlib.Path | None
    record: dict[str, Any]


def fetch_debian(
    patterns: Mapping[str, str],
    folder: str | os.PathLike,
    descriptions: bool = True,
) -> DebianFiles:
    """Packages and package descriptions; apt fetches them the first time.

    apt uses the machine's own sources and keys, but lists and a cache in a
    temporary folder: it works without root and leaves the system as it is.
    The archive is not frozen, so that versions can't be pinned. apt checks
    what it fetches against the archive's signature; the digests are recorded
    then, and the files checked against them at every later call. The packages
    are not installed and nothing of theirs runs.

    Args:
        patterns: for each label an extended regular expression of the name of
            a package. Of several that match, the one with the highest numbers
            in its name is taken.
        folder: where the files are kept; whole or absent.
        descriptions: whether to fetch the descriptions of all packages too.

    Returns:
        The verified files.

    Raises:
        RuntimeError: if apt is missing, or cannot fetch a file (no network,
            say).
        ValueError: if a file is not the one that was fetched.
    """
    folder = pathlib.Path(folder)
    if not folder.exists():
        _fetch(patterns, folder, descriptions)
    record = files.read_json(folder / _RECORD)
    described = [record["descriptions"]] if descriptions else []
    for entry in [*record["packages"], *described]:
        check_digest(folder / entry["file"], entry["sha256"])
    packages = {e["label"]: folder / e["file"] for e in record["packages"]}
    if set(packages) != set(patterns):
        raise ValueError(
            f"{folder} must hold {sorted(patterns)}; received "
            f"{sorted(packages)}. Delete the folder to fetch it again."
        )
    path = folder / _DESCRIPTIONS if descriptions else None
    return DebianFiles(packages, path, record)


def check_digest(path: pathlib.Path, wanted: str) -> None:
    """Checks a file that was fetched.

    Args:
        path: of the file, in a folder that is fetched as a whole.
        wanted: its SHA-256 digest, 64 hex digits.

    Raises:
        ValueError: if it is not that file, or missing.
    """
    digest = files.sha256(path) if path.exists() else "no file"
    if digest != wanted:
        raise ValueError(
            f"{path} must have the sha256 digest {wanted}; received {digest}. "
            f"Delete the folder {path.parent} to fetch it again."
        )


def _fetch(patterns, folder, descriptions):
    languages = ("en",) if descriptions else ("none",)
    with (
        private_apt(folder, languages) as configuration,
        files.atomic_folder(folder) as new,
    ):
        said = run_apt(configuration, "apt-get", "-qq", "update").stderr
        record = {
            "fetched": datetime.datetime.now(datetime.UTC).isoformat(),
            "packages": _download(configuration, patterns, new, said),
        }
        if descriptions:
            record["descriptions"] = _write_descriptions(
                configuration, new, said
            )
        with open(new / _RECORD, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)


def _download(configuration, patterns, folder, said):
    entries = []
    for label, pattern in patterns.items():
        name = _find(configuration, pattern, said)
        before = set(folder.iterdir())
        logging.info("fetching %s", name)
        run_apt(configuration, "apt-get", "-qq", "download", name, cwd=folder)
        (path,) = set(folder.iterdir()) - before
        # The colon of an epoch is written as %3a.
        version = urllib.parse.unquote(path.name.split("_")[1])
        entry = {"label": label, "package": name, "version": version}
        entry |= {"file": path.name, "sha256": files.sha256(path)}
        entries.append(entry)
    return entries


def _find(configuration, pattern, said):
    search = ("search", "--names-only", f"^{pattern}$")
    found = run_apt(configuration, "apt-cache", *search).stdout.splitlines()
    names = [line.split(" - ")[0] for line in found]
    if not names:
        raise AptError(
            f"no package matches {pattern!r}. apt-get update: {reason(said)}"
        )
    return max(names, key=lambda name: [*map(int, re.findall(r"\d+", name))])


def _write_descriptions(configuration, folder, said):
    paths = {"Packages": [], "Translations": []}
    entries = []
    for suite, version, kind, path in debian_indexes(configuration):
        paths[kind].append(path)
        entry = {"suite": suite, "version": version, "index": kind}
        entries.append(entry | {"sha256": files.sha256(path)})
    texts = _join(paths["Packages"], paths["Translations"])
    if not texts:
        raise AptError(
            "the sources have no descriptions of the packages of Debian main. "
            f"apt-get update: {reason(said)}"
        )
    path = folder / _DESCRIPTIONS
    # No time stamp: the same descriptions have the same digest.
    path.write_bytes(gzip.compress(json.dumps(texts).encode(), mtime=0))
    entry = {"file": path.name, "sha256": files.sha256(path)}
    return entry | {"indexes": entries}


def _join(packages, translations):
    texts = {}
    for stanza in stanzas(translations):
        text = stanza.get("Description-en")
        if text:
            texts.setdefault(stanza["Description-md5"], text)
    chosen = {}
    for stanza in stanzas(packages):
        name = stanza["Package"]
        source = stanza.get("Source", name).split()[0]
        rank = (name != source, name)
        text = texts.get(stanza.get("Description-md5"))
        if text and (source not in chosen or rank < chosen[source][0]):
            chosen[source] = (rank, text)
    return {source: chosen[source][1] for source in sorted(chosen)}


def read_descriptions(path: str | os.PathLike) -> list[str]:
    """Package descriptions: the short one, then the paragraphs of the long.

    One for each source package: the packages built from one source share
    most of their text, and would be on both sides of a split by document. It
    is that of the package of the source's name, or else of the first by name.

    Args:
        path: the file `fetch_debian` wrote.

    Returns:
        The texts, by name of the source package.
    """
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [_paragraphs(text) for text in json.load(file).values()]


def _paragraphs(text):
    short, _, long = text.partition("\n")
    # A line with only a full stop separates paragraphs.
    long = re.sub(r"^ \.$", "", long, flags=re.MULTILINE)
    return f"{short.strip().rstrip('.')}.\n{long}"


def read_deb(path: str | os.PathLike, pattern: str) -> dict[str, bytes]:
    """Files of a Debian package, read without installing it.

    Args:
        path: the `.deb` file.
        pattern: a regular expression of the whole path of a file, as
            `usr/share/doc/anarchism/html/.*`, without the `.gz` of one that
            the packager compressed.

    Returns:
        Path and content of each plain file that matches, unpacked, by path.

    Raises:
        ValueError: if it is no Debian package, or its files are compressed in
            a way that this Python does not read; or none matches.
    """
    found = {}
    try:
        with tarfile.open(fileobj=_data_of(path)) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                plain = name.removesuffix(".gz")
                if member.isfile() and re.fullmatch(pattern, plain):
                    content = archive.extractfile(member).read()
                    packed = plain != name
                    found[plain] = (
                        gzip.decompress(content) if packed else content
                    )
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} must be compressed by gzip, bzip2 or xz; received {error}."
        ) from None
    if not found:
        raise ValueError(f"{path} must hold {pattern!r}; received no match.")
    return dict(sorted(found.items()))


def _data_of(path):
    """The tar file of a `.deb`, an `ar` archive with heads of 60 bytes."""
    with open(path, "rb") as file:
        if file.read(8) == b"!<arch>\n":
            while len(head := file.read(60)) == 60:
                content = file.read(int(head[48:58]))
                if head.startswith(b"data.tar"):
                    return io.BytesIO(content)
                file.read(len(content) % 2)
    raise ValueError(
        f"{path} must be a Debian package; received a file without data.tar."
    )
