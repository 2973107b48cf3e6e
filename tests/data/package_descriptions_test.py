import gzip
import shutil
import subprocess

import pytest

from keras_switch.data import (
    package_descriptions,
    package_descriptions_record,
)
from keras_switch.data.package_descriptions import (
    join_descriptions,
    short_and_long,
    source_family,
)
from tests.data import archive


def test_indexes_are_joined_by_digest(tmp_path):
    (tmp_path / "packages").write_text(
        "Package: b-data\nSource: b (1.0)\nSection: games\n"
        "Description-md5: 2\n\n"
        "Package: b\nSection: non-free/games\nDescription-md5: 1\n\n"
        "Package: b-dbg\nSource: b\nDescription-md5: 1\n\n"
        "Package: lost\nDescription-md5: 3\n\n"
        "Package: a\nSection: python\nDescription-md5: 2\n"
    )
    (tmp_path / "en").write_text(
        "Description-md5: 1\nDescription-en: one\n long\n\n"
        "Description-md5: 2\nDescription-en: two\n"
    )
    (tmp_path / "de").write_text(
        "Description-md5: 1\nDescription-de: eins\n\n"
        "Description-md5: 3\nDescription-de: drei\n"
    )
    found = join_descriptions(
        [tmp_path / "packages"], [tmp_path / "en", tmp_path / "de"]
    )
    assert [tuple(description) for description in found] == [
        ("a", "a", "python", {"en": "two"}),
        ("b", "b", "games", {"en": "one\n long", "de": "eins"}),
        ("b-data", "b", "games", {"en": "two"}),
    ]


def test_a_description_has_two_parts():
    text = "Short  one\n It is\n  long.\n .\n Very."
    assert short_and_long(text) == ("Short one", "It is long. Very.")
    assert short_and_long("Alone") == ("Alone", "")


@pytest.mark.parametrize(
    "source, family",
    [
        ("gcc-13", "gcc"),
        ("gcc-14", "gcc"),
        ("linux-6.12", "linux"),
        ("python3.13", "python"),
        ("0ad", "ad"),
        ("7", "7"),
        ("zlib", "zlib"),
    ],
)
def test_versions_of_a_source_are_a_family(source, family):
    assert source_family(source) == family


@pytest.mark.skipif(
    not shutil.which("apt-get"), reason="apt-get is not installed"
)
def test_apt_fetches_once(tmp_path, monkeypatch):
    made = tmp_path / "archive"
    made.mkdir()
    configuration = archive.write_archive(
        made, {}, [("a", "a", "Program\n It runs.")]
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    cache = tmp_path / "cache"
    with pytest.raises(FileNotFoundError, match="Call package_descriptions"):
        package_descriptions_record(cache)
    found = package_descriptions(cache)
    assert [tuple(d) for d in found] == [
        ("a", "a", "", {"en": "Program\n It runs."})
    ]
    indexes = package_descriptions_record(cache)["indexes"]
    assert [i["index"] for i in indexes] == ["Packages", "Translations"]

    def no_network(*args, **kwargs):
        raise AssertionError("the cached files must do")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert package_descriptions(cache) == found
    path = cache / "package-descriptions" / "descriptions.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(ValueError, match="Delete the folder"):
        package_descriptions(cache)
