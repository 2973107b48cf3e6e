import json
import shutil

import pytest

from keras_switch.convert import tokenizer as subject
from keras_switch.convert.tokenizer import read_proto, write_tokenizer
from keras_switch.files import CheckpointError
from keras_switch.models import SwitchTokenizer
from tests import vocabularies
from tests.convert import tokenizer_texts
from tests.convert.tokenizer_texts import BLANKS, TEXTS
from tests.models import tiny

# T5Tokenizer takes U+0085 for a space.
SAME = [text for text in TEXTS + BLANKS if "\x85" not in text]
FILES = ["spiece.model", "tokenizer.json", "tokenizer_config.json"]


def folder_of(folder, config=None, **files):
    """A folder with the tiny model and other files."""
    (folder / "spiece.model").write_bytes(tiny.proto())
    if config is not None:
        files["tokenizer_config"] = config
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name}.json").write_text(text)
    return folder


def test_a_model_is_read_as_it_is(tmp_path):
    assert read_proto(folder_of(tmp_path)) == (tiny.proto(), 100)


def added(names):
    return {"added_tokens_decoder": names}


@pytest.mark.parametrize(
    "config, extra_ids",
    [
        ({}, 100),
        ({"extra_ids": 7}, 7),
        ({"extra_ids": 0}, 0),
        (added({"0": {"content": "<pad>"}}), 100),
        (added({"50": {"content": "<extra_id_99>"}}), 100),
        ({"extra_ids": 1, **added({"50": "<extra_id_0>"})}, 1),
    ],
)
def test_a_configuration_says_how_many_sentinels(config, extra_ids, tmp_path):
    _, number = read_proto(folder_of(tmp_path, config))
    assert number == extra_ids


def test_a_list_of_added_tokens_is_checked(tmp_path):
    tokens = {"<extra_id_99>": 50, "<extra_id_0>": 149}
    folder = folder_of(tmp_path, added_tokens=tokens)
    assert read_proto(folder) == (tiny.proto(), 100)
    folder_of(tmp_path, added_tokens={**tokens, "<new>": 150})
    with pytest.raises(CheckpointError, match=r"added_tokens.json: .*'<new>'"):
        read_proto(folder)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"extra_ids": -1}, "extra_ids must be an int from 0 to 10000"),
        ({"extra_ids": 10**9}, "extra_ids must be an int"),
        ({"extra_ids": True}, "extra_ids must be an int"),
        ({"extra_ids": None}, "extra_ids must be an int"),
        ('{"extra_ids": NaN}', "NaN"),
        ('{"extra_ids": 1, "extra_ids": 2}', "extra_ids must be there once"),
        ('{"extra_ids": 1', "content must be JSON"),
        ("[]", "a JSON object"),
        (added([]), "added_tokens_decoder must be a dict"),
        (added({"150": {"content": "<new>"}}), "'<new>' with id 150"),
        (added({"49": "<extra_id_99>"}), "'<extra_id_99>' with id 49"),
        (added({"x": "<pad>"}), "'<pad>' with id x"),
        (added({"0": {}}), "None with id 0"),
        (
            {"extra_ids": 2, **added({"52": "<extra_id_2>"})},
            "one of 2 sentinels",
        ),
    ],
)
def test_a_wrong_configuration_is_refused(config, message, tmp_path):
    folder = folder_of(tmp_path, config)
    with pytest.raises(CheckpointError, match=message) as error:
        read_proto(folder)
    assert error.value.file == str(folder / "tokenizer_config.json")


@pytest.mark.parametrize(
    "content", [b"", b"not a model", tiny.proto()[:-7], tiny.proto()[3:]]
)
def test_a_damaged_model_is_refused(content, tmp_path):
    (tmp_path / "spiece.model").write_bytes(content)
    with pytest.raises(CheckpointError, match="a SentencePiece model") as error:
        read_proto(tmp_path)
    assert error.value.file == str(tmp_path / "spiece.model")


def test_a_file_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "_MAX_BYTES", len(tiny.proto()) - 1)
    with pytest.raises(CheckpointError, match="size must be at most"):
        read_proto(folder_of(tmp_path))


def test_a_folder_without_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="received neither of them"):
        read_proto(tmp_path)


def load(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def assert_same_ids(theirs, ours, texts):
    wanted = theirs(list(texts), add_special_tokens=False)["input_ids"]
    for text, got, ids in zip(texts, ours(list(texts)), wanted, strict=True):
        assert got == ids, text


def assert_written(ours, folder, texts):
    """Both of AutoTokenizer's ways to choose a class, and back."""
    write_tokenizer(ours, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    theirs = load(folder)
    assert_same_ids(theirs, ours, texts)
    assert len(theirs) == ours.vocabulary_size()
    (folder / "config.json").write_text('{"model_type": "switch_transformers"}')
    assert_same_ids(load(folder), ours, texts)
    assert read_proto(folder) == (ours.proto, ours.extra_ids)
    (folder / "spiece.model").unlink()
    proto, extra_ids = read_proto(folder)
    again = SwitchTokenizer(proto, extra_ids)
    assert extra_ids == ours.extra_ids
    assert again(list(texts)) == ours(list(texts))
    assert again.get_vocabulary() == ours.get_vocabulary()
    return theirs


@pytest.mark.parametrize("extra_ids", [100, 7, 0])
def test_a_trained_vocabulary_is_written(extra_ids, tmp_path):
    ours = SwitchTokenizer(tiny.proto(), extra_ids)
    texts = TEXTS + BLANKS if extra_ids == 100 else TEXTS
    theirs = assert_written(ours, tmp_path / "new" / "folder", texts)
    assert theirs.pad_token_id == 0
    assert theirs.eos_token_id == 1
    assert theirs.unk_token_id == 2
    assert theirs("dog")["input_ids"] == [*ours(["dog"])[0], 1]
    assert theirs("a", "b")["input_ids"].count(1) == 2
    text = "the dog walks, in parks"
    assert theirs.decode(ours([text])[0]) == text


@pytest.mark.parametrize("name", sorted(tokenizer_texts.MODELS))
def test_other_trained_vocabularies_are_written(name, tmp_path):
    ours = SwitchTokenizer(tokenizer_texts.model(name))
    theirs = assert_written(ours, tmp_path, TEXTS + BLANKS)
    text = "the dog walks <extra_id_3>"
    assert theirs.decode(ours([text])[0]) == text.replace(" <", "<")


def test_what_transformers_saves_is_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "spiece.model").write_bytes(tiny.proto())
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    saved = {path.name for path in (tmp_path / "saved").iterdir()}
    assert "spiece.model" not in saved
    ours = SwitchTokenizer(*read_proto(tmp_path / "saved"))
    assert_same_ids(theirs, ours, SAME)
    assert ours.get_vocabulary() == list(
        theirs.convert_ids_to_tokens(range(len(theirs)))
    )


def test_t5_both_ways(tmp_path):
    transformers = pytest.importorskip("transformers")
    path = vocabularies.fetch("t5")
    shutil.copy(path, tmp_path / "spiece.model")
    theirs = transformers.T5Tokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "saved")
    ours = SwitchTokenizer(*read_proto(tmp_path / "saved"))
    assert_same_ids(theirs, ours, SAME)
    assert_written(SwitchTokenizer(path), tmp_path / "ours", TEXTS + BLANKS)


@pytest.mark.slow
def test_mt5_both_ways(tmp_path):
    shutil.copy(vocabularies.fetch("mt5"), tmp_path / "spiece.model")
    proto, extra_ids = read_proto(tmp_path)
    assert extra_ids == 0
    texts = [*TEXTS, "The <extra_id_0> walks in <extra_id_99>, a dog"]
    assert_written(SwitchTokenizer(proto, 0), tmp_path / "ours", texts)


def test_writing_replaces_and_does_not_start_before_it_can(tmp_path):
    write_tokenizer(SwitchTokenizer(tiny.proto()), tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for refused in (
        SwitchTokenizer(),
        SwitchTokenizer(tiny.proto("bpe")),
    ):
        with pytest.raises(ValueError, match="received a model|without"):
            write_tokenizer(refused, tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    write_tokenizer(SwitchTokenizer(tiny.proto(), 3), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == FILES
    assert read_proto(tmp_path) == (tiny.proto(), 3)
