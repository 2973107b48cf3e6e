import gzip
import json
import shutil
import subprocess

import pytest

from keras_switch.data import debian
from keras_switch.data.debian import fetch_debian, read_deb, read_descriptions
from tests.data import archive

PATTERNS = {"kernel": r"linux-doc-[0-9.]+", "book": "book"}
needs_apt = pytest.mark.skipif(
    not shutil.which("apt-get"), reason="apt-get is not installed"
)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """An archive with two kernels, the newer one later by number alone."""
    folder = tmp_path / "archive"
    folder.mkdir()
    content = {"usr/share/doc/page.txt.gz": b"a page"}
    configuration = archive.write_archive(
        folder,
        {
            "linux-doc-6.12": ("1:6.12-1", content),
            "linux-doc-6.9": ("6.9-1", content),
            "linux-doc": ("7", content),
            "book": ("2", content),
        },
        [
            ("a-data", "a", "Data of a\n Long,\n two lines.\n .\n Next."),
            ("a", "a (1.0)", "Program a\n It runs."),
            ("zlib2", "zlib", "Second\n Text 2."),
            ("zlib1", "zlib", "First\n Text 1."),
            ("lone", "lone", "Alone."),
        ],
    )
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    return folder


@needs_apt
def test_apt_fetches_once(packages, tmp_path, monkeypatch):
    folder = tmp_path / "cache" / "debian"
    fetched = fetch_debian(PATTERNS, folder)
    assert {p.name for p in folder.iterdir()} == {
        "book_2_all.deb",
        "linux-doc-6.12_1%3a6.12-1_all.deb",
        "descriptions.json.gz",
        "debian.json",
    }
    assert [p.name for p in folder.parent.iterdir()] == ["debian"]
    kernel, book = fetched.record["packages"]
    assert kernel["package"] == "linux-doc-6.12"
    assert kernel["version"] == "1:6.12-1" and book["version"] == "2"
    indexes = fetched.record["descriptions"]["indexes"]
    assert [i["index"] for i in indexes] == ["Packages", "Translations"]
    assert {(i["suite"], i["version"]) for i in indexes} == {("made", "1")}
    pages = read_deb(fetched.packages["book"], ".*[.]txt")
    assert pages == {"usr/share/doc/page.txt": b"a page"}

    def no_network(*args, **kwargs):
        raise AssertionError("the cached files must do")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert fetch_debian(PATTERNS, folder) == fetched


@needs_apt
def test_one_description_for_each_source(packages, tmp_path):
    fetched = fetch_debian({"book": "book"}, tmp_path / "debian")
    texts = [" ".join(t.split()) for t in read_descriptions(fetched[1])]
    assert texts == ["Program a. It runs.", "Alone.", "First. Text 1."]


@needs_apt
def test_a_changed_file_is_refused(packages, tmp_path):
    folder = tmp_path / "debian"
    fetched = fetch_debian(PATTERNS, folder)
    with pytest.raises(ValueError, match=r"must hold \['book'\]"):
        fetch_debian({"book": "book"}, folder)
    path = fetched.packages["book"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="Delete the folder"):
        fetch_debian(PATTERNS, folder)
    path.unlink()
    with pytest.raises(ValueError, match="received no file"):
        fetch_debian(PATTERNS, folder)


@needs_apt
@pytest.mark.parametrize("missing", ["package", "file", "network", "origin"])
def test_what_apt_cannot_do_is_said(packages, tmp_path, missing, monkeypatch):
    patterns, said = {"book": "book"}, "descriptions of the packages"
    if missing == "package":
        patterns, said = {"x": "no-such"}, "no package matches 'no-such'"
    elif missing == "file":
        (packages / "book_2_all.deb").unlink()
        said = "apt-get -qq download book: E: "
    elif missing == "network":
        shutil.rmtree(packages / "dists")
        said = "apt-get -qq update: E: Failed to fetch file:"
    else:
        other = tmp_path / "other"
        other.mkdir()
        path = archive.write_archive(other, {"book": ("2", {})}, [], "Other")
        monkeypatch.setenv("APT_CONFIG", str(path))
    with pytest.raises(RuntimeError) as error:
        fetch_debian(patterns, tmp_path / "cache" / "debian")
    assert "could not fetch from the Debian archive" in str(error.value)
    assert said in str(error.value)
    assert not list((tmp_path / "cache").iterdir())


def test_without_apt_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError) as error:
        fetch_debian(PATTERNS, tmp_path / "debian")
    assert "apt-get must be installed" in str(error.value)
    assert f"copy the folder {tmp_path / 'debian'} from" in str(error.value)
    assert not (tmp_path / "debian").exists()


def test_descriptions_are_joined_by_their_digest(tmp_path):
    (tmp_path / "packages").write_text(
        "Package: b\nSource: s\nDescription-md5: 2\n\n"
        "Package: none\nDescription-md5: 9\n\n"
        "Package: a\nSource: s\nDescription-md5: 1"
    )
    (tmp_path / "translations").write_text(
        "Description-md5: 1\nDescription-en: one\n long\n\n"
        "Description-md5: 2\nDescription-en: two\n"
    )
    joined = debian._join([tmp_path / "packages"], [tmp_path / "translations"])
    assert joined == {"s": "one\n long"}


def test_a_description_is_a_sentence_and_paragraphs(tmp_path):
    path = tmp_path / "descriptions.json.gz"
    texts = {"a": "Short.\n One\n line.\n .\n Two.\n", "b": "Only short"}
    path.write_bytes(gzip.compress(json.dumps(texts).encode()))
    first, second = read_descriptions(path)
    assert first == "Short.\n One\n line.\n\n Two.\n"
    assert second == "Only short.\n"


@pytest.mark.parametrize("name", ["data.tar.xz", "data.tar.gz"])
def test_a_deb_is_read_by_path(tmp_path, name):
    path = tmp_path / "book.deb"
    content = {"b/2.txt": b"two", "b/1.txt.gz": b"one", "b/3.png": b"\0"}
    archive.write_deb(path, content, name)
    pages = read_deb(path, "b/.*[.]txt")
    assert list(pages.items()) == [("b/1.txt", b"one"), ("b/2.txt", b"two")]
    with pytest.raises(ValueError, match="must hold 'c/.*' *; received no"):
        read_deb(path, "c/.*")


def test_what_is_no_deb_is_refused(tmp_path):
    path = tmp_path / "book.deb"
    for content in (b"", b"PK\3\4", b"!<arch>\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="must be a Debian package"):
            read_deb(path, ".*")
    head = f"{'data.tar.zst':<48}{8:<10}`\n".encode()
    path.write_bytes(b"!<arch>\n" + head + b"\x28\xb5\x2f\xfd1234")
    with pytest.raises(ValueError, match="gzip, bzip2 or xz"):
        read_deb(path, ".*")
