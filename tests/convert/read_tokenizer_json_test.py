import copy
import functools
import json
import math
import warnings

import pytest

from keras_switch.convert.read_tokenizer_json import read_tokenizer_json
from keras_switch.convert.tokenizer import read_proto
from keras_switch.convert.write_tokenizer_json import tokenizer_json
from keras_switch.files import CheckpointError
from keras_switch.models import SwitchTokenizer
from tests.convert.tokenizer_texts import BLANKS, TEXTS, model
from tests.models import tiny

LISTED = [*TEXTS, *BLANKS]
STRIP = {"type": "Strip", "strip_left": False, "strip_right": True}
SPACES = {"type": "Replace", "pattern": {"Regex": " {2,}"}}
WORDS = {"type": "WhitespaceSplit"}
METASPACE = {"type": "Metaspace", "replacement": "\u2581"}


@functools.cache
def tiny_content():
    return tokenizer_json(tiny.proto(), 100)


@pytest.fixture
def content():
    return copy.deepcopy(tiny_content())


@pytest.fixture
def read(tmp_path):
    def write_and_read(content):
        path = tmp_path / "tokenizer.json"
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text)
        return read_tokenizer_json(path)

    return write_and_read


def sequence(name, *steps):
    return {"type": "Sequence", name: list(steps)}


def table(content):
    """The first step of the normaliser."""
    return content["normalizer"]["normalizers"][0]


def as_now(content):
    content["normalizer"] = table(content)
    content["pre_tokenizer"] = sequence(
        "pretokenizers",
        WORDS,
        {**METASPACE, "prepend_scheme": "always", "split": True},
    )


def as_in_version_4(content):
    content["normalizer"] = sequence(
        "normalizers",
        table(content),
        STRIP,
        {**SPACES, "content": "\u2581"},
    )
    content["pre_tokenizer"] = {
        **METASPACE,
        "add_prefix_space": True,
        "prepend_scheme": "always",
    }


def as_in_2021(content):
    content["normalizer"] = sequence(
        "normalizers", table(content), {**SPACES, "content": " "}
    )
    content["pre_tokenizer"] = sequence(
        "pretokenizers",
        WORDS,
        {**METASPACE, "str_rep": "\u2581", "add_prefix_space": True},
    )


def with_sentinels_added_alone(content):
    del content["model"]["vocab"][-100:]


AGES = [as_now, as_in_version_4, as_in_2021, with_sentinels_added_alone]


@pytest.mark.parametrize("change", AGES)
def test_files_of_all_ages_are_the_same_model(change, content, read):
    change(content)
    proto, extra_ids = read(content)
    assert extra_ids == 100
    ours, again = SwitchTokenizer(tiny.proto()), SwitchTokenizer(proto)
    assert again(LISTED) == ours(LISTED)
    assert again.get_vocabulary() == ours.get_vocabulary()
    texts = ours.detokenize(ours(LISTED))
    assert again.detokenize(again(LISTED)) == texts


@pytest.mark.parametrize("name", ["bytes", "unknown elsewhere", "case folded"])
def test_other_models(name, read):
    proto, extra_ids = read(tokenizer_json(model(name), 3))
    assert extra_ids == 3
    ours, again = SwitchTokenizer(model(name), 3), SwitchTokenizer(proto, 3)
    assert again(LISTED) == ours(LISTED)
    special = again.end_token_id, again.pad_token_id, again.token_to_id("?<?")
    assert special == (
        ours.end_token_id,
        ours.pad_token_id,
        ours.token_to_id("?<?"),
    )


def test_the_same_file_makes_the_same_bytes(content, read):
    assert read(content) == read(copy.deepcopy(content))


def put(path, value):
    """A change: sets what lies at a path, or removes it."""

    def change(content):
        *parents, last = path
        for name in parents:
            content = content[name]
        if value is KeyError:
            del content[last]
        else:
            content[last] = value

    return change


def add_token(token, index, **flags):
    return lambda content: content["added_tokens"].append(
        {"content": token, "id": index, **flags}
    )


def swap_sentinels(content):
    vocabulary = content["model"]["vocab"]
    vocabulary[-1], vocabulary[-2] = vocabulary[-2], vocabulary[-1]


NORMALIZERS = ("normalizer", "normalizers")
VOCABULARY = ("model", "vocab")


@pytest.mark.parametrize(
    "change, message",
    [
        (put(["model"], KeyError), "model must be a dict; received None"),
        (put(["model"], []), "model must be a dict"),
        (put(["model", "type"], "BPE"), "model.type must be Unigram; .*'BPE'"),
        (put(VOCABULARY, {"a": 0}), "vocab must be a list"),
        (put([*VOCABULARY, 9], ["a"]), r"pairs of a piece .*\['a'\]"),
        (put([*VOCABULARY, 9], ["a", "1"]), "pairs of a piece"),
        (put([*VOCABULARY, 9], ["a", True]), "pairs of a piece"),
        (put([*VOCABULARY, 9], ["", -1.0]), "pairs of a piece"),
        (put([*VOCABULARY, 9], [7, -1.0]), "pairs of a piece"),
        (put([*VOCABULARY, 9], ["\ud800", -1.0]), "pairs of a piece"),
        (put([*VOCABULARY, 9], ["a", 1e39]), "pairs of a piece"),
        (put([*VOCABULARY, 9], ["a", math.nan]), "NaN"),
        (put(["model", "unk_id"], None), "unk_id must be a int; .*None"),
        (put(["model", "unk_id"], 50), "unk_id must be below 50"),
        (put(["model", "unk_id"], -1), "unk_id must be below 50"),
        (put(["model", "unk_id"], False), "unk_id must be a int"),
        (put(["added_tokens"], {}), "added_tokens must be a list"),
        (put(["added_tokens", 0], "<pad>"), "added_tokens must be objects"),
        (add_token("<new>", 150), "'<new>' with id 150"),
        (add_token("<pad>", 1), "'<pad>' with id 1"),
        (add_token("<extra_id_100>", 150), "one of 100 sentinels"),
        (add_token("<pad>", "0"), "id must be a int"),
        (swap_sentinels, "an added token must be a piece of the model"),
        (put(["normalizer"], None), "normalizer must be Precompiled"),
        (put(["normalizer"], 3), "normalizer must be objects"),
        (put(["normalizer"], {"type": "NFKC"}), r"received \['NFKC'\]"),
        (put([*NORMALIZERS, 1], {"type": "Lowercase"}), "Lowercase"),
        (
            put([*NORMALIZERS, 0, "precompiled_charsmap"], "?"),
            "charsmap must be base64; received '[?]'",
        ),
        (put([*NORMALIZERS, 0, "precompiled_charsmap"], 0), "must be a str"),
        (put([*NORMALIZERS], {}), "normalizers must be a list"),
        (put(["pre_tokenizer"], None), "pre_tokenizer must be a Metaspace"),
        (put(["pre_tokenizer"], WORDS), "pre_tokenizer must be a Metaspace"),
        (
            put(["pre_tokenizer"], {**METASPACE, "prepend_scheme": "first"}),
            "a Metaspace that begins every text with a space",
        ),
        (
            put(["pre_tokenizer"], {**METASPACE, "add_prefix_space": False}),
            "a Metaspace that begins every text with a space",
        ),
        (
            put(["pre_tokenizer"], {**METASPACE, "replacement": "_"}),
            "a Metaspace that begins every text with a space",
        ),
    ],
)
def test_what_is_not_sentencepiece_is_refused(change, message, content, read):
    change(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read(content)
    assert error.value.file.endswith("tokenizer.json")


@pytest.mark.parametrize("missing", [0, 1])
def test_spaces_that_would_stay_are_refused(missing, content, read):
    as_in_version_4(content)
    del content["normalizer"]["normalizers"][1 + missing]
    with pytest.raises(CheckpointError, match="then Strip and Replace or a"):
        read(content)


def test_words_without_a_table_are_refused(content, read):
    content["normalizer"] = None
    content["pre_tokenizer"] = sequence("pretokenizers", WORDS, METASPACE)
    with pytest.raises(CheckpointError, match="Precompiled with a Whitespace"):
        read(content)


def repeat_a_piece(content):
    content["model"]["vocab"][9] = content["model"]["vocab"][8]


def cut_the_table(content):
    table(content)["precompiled_charsmap"] = "AAAA"


def lose_a_byte(content):
    content["model"]["byte_fallback"] = True
    content["model"]["vocab"][9] = ["<0x00>", 0.0]


@pytest.mark.parametrize("change", [repeat_a_piece, cut_the_table, lose_a_byte])
def test_what_sentencepiece_refuses_is_refused(change, content, tmp_path):
    change(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="a SentencePiece model") as error:
        read_proto(tmp_path)
    assert error.value.file == str(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model": 1, "model": 2}', '{"model": NaN}']
)
def test_what_is_not_strict_json_is_refused(text, read):
    with pytest.raises(CheckpointError):
        read(text)


def test_byte_pieces_without_fallback_are_ordinary(read):
    # As T5Tokenizer of transformers 5 saves mT5: what is unknown stays so.
    content = tokenizer_json(model("bytes"), 100)
    content["model"]["byte_fallback"] = False
    tokenizer = SwitchTokenizer(*read(content))
    assert 2 in tokenizer(["\u6771"])[0]
    assert tokenizer(["dog"]) == SwitchTokenizer(model("bytes"))(["dog"])


def test_no_warnings(content, read):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(content)
