import json

import pytest

from keras_switch.convert.write_tokenizer_json import tokenizer_json
from keras_switch.models import SwitchTokenizer
from tests.convert.tokenizer_texts import BLANKS, TEXTS, model, train
from tests.models import tiny


def test_the_vocabulary_ends_with_the_sentinels():
    content = tokenizer_json(tiny.proto(), 100)
    pieces = [piece for piece, _ in content["model"]["vocab"]]
    assert pieces == SwitchTokenizer(tiny.proto()).get_vocabulary()
    assert content["model"]["unk_id"] == 2
    assert content["model"]["byte_fallback"] is False
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    assert list(added) == [0, 1, 2, *range(50, 150)]
    assert added == {index: pieces[index] for index in added}
    assert all(token["special"] for token in content["added_tokens"])


@pytest.mark.parametrize("name", ["bytes", "case folded"])
def test_it_is_what_the_tokenizers_library_reads(name):
    tokenizers = pytest.importorskip("tokenizers")
    text = json.dumps(tokenizer_json(model(name), 100))
    theirs = tokenizers.Tokenizer.from_str(text)
    ours = SwitchTokenizer(model(name))
    for text in TEXTS + BLANKS:
        got = theirs.encode(text, add_special_tokens=False).ids
        assert got == ours([text])[0], text
    assert theirs.encode("dog").ids == [*ours(["dog"])[0], 1]


def test_every_byte_name_in_a_text_is_text():
    tokenizers = pytest.importorskip("tokenizers")
    text = json.dumps(tokenizer_json(model("bytes"), 0))
    theirs = tokenizers.Tokenizer.from_str(text)
    ours = SwitchTokenizer(model("bytes"), 0)
    for byte in range(256):
        text = f"a<0x{byte:02X}> <0x{byte:02X}>"
        assert (
            theirs.encode(text, add_special_tokens=False).ids
            == (ours([text])[0])
        )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"model_type": "bpe"}, "model_type must be unigram"),
        ({"model_type": "char"}, "model_type must be unigram"),
        ({"add_dummy_prefix": False}, "add_dummy_prefix must be True"),
        (
            {"remove_extra_whitespaces": False},
            "remove_extra_whitespaces must be True",
        ),
        (
            {"treat_whitespace_as_suffix": True},
            "treat_whitespace_as_suffix must be False",
        ),
        (
            {"user_defined_symbols": ["dog"]},
            "unused and user-defined pieces must be 0",
        ),
    ],
)
def test_what_transformers_cannot_represent(arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenizer_json(train(**arguments), 100)


def test_sentinels_of_a_model_itself_are_pieces():
    own = [f"\u2581<extra_id_{i}>" for i in (1, 0)]
    proto = train(user_defined_symbols=own)
    content = tokenizer_json(proto, 0)
    pieces = dict(content["model"]["vocab"])
    assert [pieces[piece] for piece in own] == [0.0, 0.0]
    assert len(content["added_tokens"]) == 3
