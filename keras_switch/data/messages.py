"""The messages of MediaWiki's interface, translated into many languages."""

import gzip
import itertools
import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from keras_switch import files
from keras_switch.data.checks import check_integer
from keras_switch.data.corpus import Document, check_fraction, hash_fraction
from keras_switch.data.debian import check_digest, fetch_debian, read_deb
from keras_switch.data.files import cache_directory

MESSAGE_LICENCE = """\
The messages are read from Debian's package mediawiki, which is not installed:
GPL-2 or later, with parts under other licences that its copyright file names.
Use them to study the library; do not redistribute the text."""

_TEXTS = "messages.jsonl.gz"
_RECORD = "messages.json"
_ENGLISH = "en"
# Documentation of the messages, and a language that shows their keys.
_NO_LANGUAGES = ("qqq", "qqx")
# Wiki text, HTML, parameters, patterns and addresses; "|" stays free to stand
# between messages.
_MARKUP = re.compile(
    r"[<>{}\[\]|=_\\~^#*%]|\$\d|&\w+;|''|://|\n\s*\n", re.ASCII
)
# Zero-width joiners stay: some scripts need them to be read.
_INVISIBLE = re.compile("[\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
SEPARATOR = " | "


def mediawiki_messages(
    languages: int = 101, cache_dir: str | os.PathLike | None = None
) -> dict[str, dict[str, str]]:
    """Messages of MediaWiki and its extensions; apt fetches them once.

    A package of 52 MB is fetched at the first call, see `fetch_debian`, and
    15 MB of text are kept in the cache. Debian's archive is not frozen, so
    that another day may give other text: `mediawiki_record` says which it is.

    Kept are messages without markup or parameters whose English is kept too;
    translations that are the English text again are left out, and so are
    repetitions within a language. Of the codes that share a first part
    (`zh-hans`, `zh-hant`; `de`, `de-formal`) the one with the most messages
    stands for the language. English comes first, the other languages by their
    number of messages, those with as many by code.

    Args:
        languages: how many of them, from the first.
        cache_dir: see `keras_switch.data.cache_directory`.

    Returns:
        By language, by key: the text with single spaces. Keys have the same
        order in all languages.

    Raises:
        RuntimeError: if apt is missing, or cannot fetch (no network, say).
        ValueError: if there are fewer languages, or the file in the cache is
            not the one that was made.
    """
    check_integer("languages", languages, 1)
    logging.log_first_n(logging.INFO, "%s", 1, MESSAGE_LICENCE)
    folder = _folder(cache_dir)
    if not folder.exists():
        _make(folder)
    record = mediawiki_record(cache_dir)
    check_digest(folder / _TEXTS, record["sha256"])
    if languages > len(record["languages"]):
        raise ValueError(
            f"languages must be at most {len(record['languages'])}; received "
            f"{languages}."
        )
    with gzip.open(folder / _TEXTS, "rt", encoding="utf-8") as file:
        return dict(map(json.loads, itertools.islice(file, languages)))


def mediawiki_record(
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """What the messages in the cache were made from.

    Args:
        cache_dir: as `mediawiki_messages`.

    Returns:
        The package's name, version and SHA-256 digest, when it was fetched,
        the digest of the kept text, and messages of each language.

    Raises:
        FileNotFoundError: if they were not fetched yet.
    """
    path = _folder(cache_dir) / _RECORD
    if not path.exists():
        raise FileNotFoundError(
            f"{path} must be there; received no file. Call mediawiki_messages "
            "first."
        )
    return files.read_json(path)


def _folder(cache_dir):
    return cache_directory(cache_dir) / "mediawiki"


def _make(folder):
    with (
        files.atomic_folder(folder) as new,
        tempfile.TemporaryDirectory() as fetched,
    ):
        debian = fetch_debian(
            {"mediawiki": "mediawiki"}, f"{fetched}/debian", descriptions=False
        )
        path = debian.packages["mediawiki"]
        found = choose_languages(read_messages(path))
        lines = "".join(
            json.dumps(pair, ensure_ascii=False) + "\n"
            for pair in found.items()
        )
        # No time stamp: the same messages have the same digest.
        (new / _TEXTS).write_bytes(gzip.compress(lines.encode(), mtime=0))
        record = {
            "debian": debian.record,
            "sha256": files.sha256(new / _TEXTS),
            "languages": {code: len(texts) for code, texts in found.items()},
        }
        text = json.dumps(record, indent=1)
        (new / _RECORD).write_text(text, encoding="utf-8")


def read_messages(path: str | os.PathLike) -> dict[str, dict[str, str]]:
    """The messages of the package that are clean, of every code.

    Args:
        path: of the `.deb` file.

    Returns:
        By code, by key. English comes first; keys are in its order.

    Raises:
        ValueError: if it is no such package.
    """
    raw = defaultdict(dict)
    for name, content in read_deb(path, r".*/i18n/.*[.]json").items():
        code = os.path.basename(name).removesuffix(".json")
        if code not in _NO_LANGUAGES:
            for key, text in json.loads(content).items():
                # "@metadata" has no text; of a key in two files, the first.
                if isinstance(text, str):
                    raw[code].setdefault(key, text)
    english = dict(_clean(raw[_ENGLISH], raw[_ENGLISH]))
    found = {_ENGLISH: english}
    for code in sorted(raw.keys() - {_ENGLISH}):
        found[code] = {
            key: text
            for key, text in _clean(raw[code], english)
            if text.casefold() != english[key].casefold()
        }
    return found


def _clean(texts: Mapping[str, str], keys) -> Iterator[tuple[str, str]]:
    """Keys and clean texts, each text once."""
    seen = set()
    for key in keys:
        text = texts.get(key, "")
        if _MARKUP.search(text):
            continue
        text = " ".join(_INVISIBLE.sub("", text).split())
        if any(map(str.isalpha, text)) and text not in seen:
            seen.add(text)
            yield key, text


def choose_languages(
    messages: Mapping[str, dict[str, str]],
) -> dict[str, dict[str, str]]:
    """One code of each language, those with the most messages first.

    Args:
        messages: from `read_messages`.

    Returns:
        See `mediawiki_messages`.
    """

    def rank(code):
        return (code != _ENGLISH, -len(messages[code]), code)

    chosen = {}
    for code in sorted(messages, key=rank):
        if messages[code]:
            chosen.setdefault(code.partition("-")[0], code)
    return {code: messages[code] for code in chosen.values()}


def split_messages(
    messages: Mapping[str, Mapping[str, str]], held_out_fraction: float = 0.08
) -> tuple[list[Document], list[Document]]:
    """A training and a held-out document of each language.

    The split is by key, over all languages at once, so that no translation of
    a held-out message is trained on. Keys with the same English text, capitals
    aside, are on the same side; the side depends on nothing but that text. A
    held-out text that another key has in the training document of the
    language is left out.

    Args:
        messages: by language, by key; with English.
        held_out_fraction: the expected part held out, between 0 and 1.

    Returns:
        `(train, held_out)`, each a document for a language, in the order
        given, with the code as its domain: the messages in their order with
        `SEPARATOR` between them.

    Raises:
        ValueError: if the fraction is not between 0 and 1, or a language has
            no message on a side.
    """
    check_fraction(held_out_fraction)
    held_out_keys = {
        key
        for key, text in messages[_ENGLISH].items()
        if hash_fraction(text.casefold()) < held_out_fraction
    }
    sides = ([], [])
    for code, texts in messages.items():
        train = [text for k, text in texts.items() if k not in held_out_keys]
        seen = {text.casefold() for text in train}
        held_out = [
            text
            for key, text in texts.items()
            if key in held_out_keys and text.casefold() not in seen
        ]
        if not (train and held_out):
            raise ValueError(
                "messages of each language must fill both sides of the split; "
                f"received {len(texts)} of {code!r}, which gave {len(train)} "
                f"and {len(held_out)}."
            )
        for side, chosen in zip(sides, (train, held_out), strict=True):
            side.append(Document(SEPARATOR.join(chosen), code))
    return sides
