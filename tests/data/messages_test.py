import gzip
import json
import shutil
import subprocess

import numpy as np
import pytest

from keras_switch.data import (
    mediawiki_messages,
    mediawiki_record,
    split_messages,
)
from keras_switch.data.debian import fetch_debian
from keras_switch.data.messages import (
    SEPARATOR,
    choose_languages,
    read_messages,
)
from tests.data import archive

FOLDER = "usr/share/mediawiki"
needs_apt = pytest.mark.skipif(
    not shutil.which("apt-get"), reason="apt-get is not installed"
)


def package_of(messages):
    """Files of a package, from messages by folder, by code."""
    return {
        f"{FOLDER}/{folder}/i18n/{code}.json": json.dumps(
            {"@metadata": {"authors": ["a"]}} | texts
        ).encode()
        for folder, codes in messages.items()
        for code, texts in codes.items()
    }


ENGLISH = {
    "a": "Save  page",
    "b": "Edit $1",
    "c": "Wiki",
    "d": "Save page",
    "e": "12:30",
    "f": "One\u200e day",
}
PACKAGE = package_of(
    {
        "languages": {
            "en": ENGLISH,
            "de": {"f": "Ein Tag", "a": "Speichern", "c": "wiki", "b": "$1"},
            "de-at": {"a": "Speichern"},
            "zh-hans": {"a": "\u4fdd\u5b58"},
            "zh-hant": {"a": "\u5132\u5b58", "c": "\u7ef4\u57fa"},
            "qqq": {"a": "On a button"},
        },
        "extensions/x": {
            "en": {"x": "Extension", "a": "Save it"},
            "de": {"x": "Erweiterung", "y": "no English"},
        },
    }
)


def made_up(languages, count=400):
    """Messages of several languages with letters of their own each."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice([*"abdeiklmnorstu"], 4)) for _ in range(60)]
    english = {f"key-{i}": " ".join(rng.choice(words, 5)) for i in range(count)}
    return {"en": english} | {
        code: {key: f"{code} {text[::-1]}" for key, text in english.items()}
        for code in languages
    }


def write_package(folder, content):
    """An archive with the package; the configuration's path."""
    folder.mkdir()
    return archive.write_archive(folder, {"mediawiki": ("1", content)}, [])


def test_messages_without_markup(tmp_path):
    archive.write_deb(tmp_path / "wiki.deb", PACKAGE)
    found = read_messages(tmp_path / "wiki.deb")
    assert set(found) == {"en", "de", "de-at", "zh-hans", "zh-hant"}
    # By file, then as in it; of "a" in two files the first.
    english = {"x": "Extension", "a": "Save it", "c": "Wiki", "d": "Save page"}
    assert found["en"] == english | {"f": "One day"}
    assert list(found["en"]) == ["x", "a", "c", "d", "f"]
    # In the order of English, without what is English still.
    german = {"x": "Erweiterung", "a": "Speichern", "f": "Ein Tag"}
    assert found["de"] == german and list(found["de"]) == ["x", "a", "f"]


def test_a_code_stands_for_a_language(tmp_path):
    archive.write_deb(tmp_path / "wiki.deb", PACKAGE)
    chosen = choose_languages(read_messages(tmp_path / "wiki.deb"))
    assert list(chosen) == ["en", "de", "zh-hant"]
    # English is the first even of fewer; as many go by code.
    few = {"b": {"k": "1", "l": "2"}, "a": {"k": "3"}, "en": {"k": "4"}}
    few |= {"aa": {"k": "5"}, "c": {}}
    assert list(choose_languages(few)) == ["en", "b", "a", "aa"]


def test_no_translation_of_a_held_out_message_is_trained_on():
    messages = made_up(["ru", "th"])
    messages["en"]["key-again"] = messages["en"]["key-7"].upper()
    messages["ru"]["key-again"] = "again"
    train, held_out = split_messages(messages, 0.2)
    sides = []
    for side in (train, held_out):
        assert [document.domain for document in side] == ["en", "ru", "th"]
        keys = []
        for document in side:
            texts = set(document.text.split(SEPARATOR))
            its = messages[document.domain].items()
            keys.append({key for key, text in its if text in texts})
        # The same keys in all languages.
        assert keys[0] - {"key-again"} == keys[1] - {"key-again"} == keys[2]
        sides.append(keys[1])
    assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 401
    assert 40 < len(sides[1]) < 120
    for keys in sides:  # the same English text is on the same side
        assert ("key-7" in keys) == ("key-again" in keys)


def test_a_held_out_text_is_not_in_training_under_another_key():
    messages = made_up(["ru"])
    train, held_out = split_messages(messages)
    key = next(
        key
        for key, text in messages["en"].items()
        if text in held_out[0].text.split(SEPARATOR)
    )
    seen = train[1].text.split(SEPARATOR)[0]
    messages["ru"][key] = seen.upper()
    _, (_, russian) = split_messages(messages)
    assert len(russian.text) < len(held_out[1].text)
    assert seen.upper() not in russian.text


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_bad_fraction_is_refused(fraction):
    with pytest.raises(ValueError, match="held_out_fraction must be between"):
        split_messages({"en": {"a": "b"}}, fraction)


def test_a_language_on_one_side_is_refused():
    messages = made_up([]) | {"ru": {"key-1": "\u0434\u0430"}}
    with pytest.raises(ValueError, match="received 1 of 'ru', which gave"):
        split_messages(messages)


@needs_apt
def test_messages_are_fetched_once(tmp_path, monkeypatch):
    path = write_package(tmp_path / "archive", PACKAGE)
    monkeypatch.setenv("APT_CONFIG", str(path))
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match="Call mediawiki_messages"):
        mediawiki_record(cache)
    messages = mediawiki_messages(2, cache)
    assert list(messages) == ["en", "de"]
    assert messages["de"]["f"] == "Ein Tag"
    record = mediawiki_record(cache)
    assert record["languages"] == {"en": 5, "de": 3, "zh-hant": 2}
    (package,) = record["debian"]["packages"]
    assert package["package"] == "mediawiki" and len(package["sha256"]) == 64
    kept = {path.name for path in (cache / "mediawiki").iterdir()}
    assert kept == {"messages.json", "messages.jsonl.gz"}

    def no_network(*args, **kwargs):
        raise AssertionError("the cached files must do")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert mediawiki_messages(2, cache) == messages
    with pytest.raises(ValueError, match="languages must be at most 3"):
        mediawiki_messages(cache_dir=cache)
    path = cache / "mediawiki" / "messages.jsonl.gz"
    path.write_bytes(gzip.compress(b"[]"))
    with pytest.raises(ValueError, match="Delete the folder"):
        mediawiki_messages(2, cache)


@needs_apt
def test_what_apt_cannot_do_leaves_no_cache(tmp_path, monkeypatch):
    path = write_package(tmp_path / "archive", PACKAGE)
    monkeypatch.setenv("APT_CONFIG", str(path))
    shutil.rmtree(tmp_path / "archive" / "dists")
    with pytest.raises(RuntimeError, match="could not fetch"):
        mediawiki_messages(cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@needs_apt
def test_a_package_without_the_descriptions_of_all(tmp_path, monkeypatch):
    path = write_package(tmp_path / "archive", PACKAGE)
    monkeypatch.setenv("APT_CONFIG", str(path))
    patterns = {"wiki": "mediawiki"}
    folder = tmp_path / "debian"
    fetched = fetch_debian(patterns, folder, descriptions=False)
    assert fetched.descriptions is None
    assert fetch_debian(patterns, folder, descriptions=False) == fetched
    assert set(fetched.record) == {"fetched", "packages"}
