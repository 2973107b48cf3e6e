"""Ids against those of `transformers`, with the vocabularies of T5 and mT5."""

import shutil

import numpy as np
import pytest
import sentencepiece

from keras_switch.models import SwitchTokenizer
from tests import vocabularies

# Without the end that `transformers` appends.
GOLDENS = {
    "The quick brown fox jumps over the lazy dog.": (
        [37, 1704, 4216, 3, 20400, 4418, 7, 147, 8, 19743, 1782, 5]
    ),
    "A long paragraph for summarization.": (
        [71, 307, 8986, 21, 4505, 1635, 1707, 5]
    ),
    "Hey how are you doing": [9459, 149, 33, 25, 692],
    "translate English to German: The house is wonderful.": (
        [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5]
    ),
    "The <extra_id_0> walks in <extra_id_1> park": (
        [37, 32099, 10681, 16, 32098, 2447]
    ),
}
TEXTS = (
    *GOLDENS,
    "",
    " ",
    "  \n\t ",
    " leading",
    "trailing ",
    "two  spaces   or more",
    "lines\nand\r\ntabs\tand\x0bothers\x0c.",
    "no\xa0break, \u3000wide\u2003and\u200bzero\ufeff widths",
    "\u2581 is how a piece writes \u2581a space",
    "caf\xe9 cafe\u0301 na\xefve \xdcber Gr\xf6\xdfe \xe7a Interna\u021bional",
    "\ufb01ne \xbd \u2460 \uff21\uff22 \u339e \u2122",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u6771\u4eac \U0001f600!",
    "\u0645\u0631\u062d\u0628\u0627 \u0928\u092e\u0938\u094d\u0924\u0947",
    "def f(x): return {'a': [x ** 2]} # <0x41> ~`\\^",
    "1,234.5 e-mail@example.org https://example.org/?q=1&r=2",
    "a\0b\x01c\x7f",
    "supercalifragilisticexpialidocious" * 9,
    "Premise: A man walks. Hypothesis: Nobody walks.",
)
BLANKS = (
    "<extra_id_0>",
    "<extra_id_0> dog <extra_id_99>",
    "<extra_id_0><extra_id_1>",
    "<extra_id_0> <extra_id_1>  <extra_id_2>",
    "The<extra_id_0>walks",
    "The  <extra_id_0>  walks ",
    "The <extra_id_0>\nwalks",
    "a <extra_id_0>, b <extra_id_1>.",
    "do<extra_id_3>g",
    "a \u2581<extra_id_0> b",
    "<extra_id_7> <extra_id_7>",
    "<extra_id_100> <extra_id_> <extra_id_07> <extra_id_1 <EXTRA_ID_0>",
    "<<extra_id_5>>",
)
CONTROLS = (
    "</s>",
    "a</s> b <pad><pad>c",
    "<unk> is <unk>",
    "</s><extra_id_0></s>",
    "< /s> </s",
)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Makes the tokenizer of `transformers` from a vocabulary."""
    transformers = pytest.importorskip("transformers")

    def make(name, **arguments):
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(vocabularies.fetch(name), folder / "spiece.model")
        return transformers.T5Tokenizer.from_pretrained(folder, **arguments)

    return make


@pytest.fixture(scope="module")
def t5(theirs):
    return theirs("t5"), SwitchTokenizer(vocabularies.fetch("t5"))


@pytest.fixture(scope="module")
def mt5(theirs):
    ours = SwitchTokenizer(vocabularies.fetch("mt5"), extra_ids=0)
    return theirs("mt5", extra_ids=0), ours


def assert_same_ids(pair, texts):
    theirs, ours = pair
    wanted = theirs(list(texts), add_special_tokens=False)["input_ids"]
    for text, got, ids in zip(texts, ours(list(texts)), wanted, strict=True):
        assert got == ids, text


def test_goldens():
    # These need no `transformers`.
    tokenizer = SwitchTokenizer(vocabularies.fetch("t5"))
    assert tokenizer.vocabulary_size() == 32_100
    for text, ids in GOLDENS.items():
        assert tokenizer([text]) == [ids]
    assert tokenizer.token_to_id("<extra_id_0>") == 32_099
    assert tokenizer.token_to_id("<extra_id_99>") == 32_000


def test_text(t5):
    assert_same_ids(t5, TEXTS)


def test_text_with_sentinels(t5):
    assert_same_ids(t5, BLANKS)


def test_random_text_with_sentinels(t5):
    rng = np.random.default_rng(5)
    parts = " ".join(TEXTS).split()
    parts += [f"<extra_id_{i}>" for i in range(100)]
    parts += [" ", "  ", "\n", ",", ".", "(", ")"] * 20
    gaps = rng.choice(["", " "], (300, 12))
    chosen = rng.choice(parts, (300, 12))
    texts = ["".join(np.ravel(row)) for row in np.stack([chosen, gaps], -1)]
    assert_same_ids(t5, texts)


def test_control_tokens_where_asked_for(t5):
    theirs, _ = t5
    path = vocabularies.fetch("t5")
    ours = SwitchTokenizer(path, special_tokens_in_strings=True)
    assert_same_ids((theirs, ours), [*CONTROLS, *BLANKS, *TEXTS])


def test_control_tokens_are_text_where_not(t5):
    theirs, ours = t5
    path = str(vocabularies.fetch("t5"))
    plain = sentencepiece.SentencePieceProcessor(model_file=path)
    for text in CONTROLS:
        ids = ours([text])[0]
        assert not {0, 1} & set(ids)
        if "<extra_id_" not in text:
            assert ids == plain.encode(text)
    assert {0, 1} <= set(theirs("a</s> b <pad>")["input_ids"][:-1])


def test_mt5(mt5):
    theirs, ours = mt5
    assert ours.vocabulary_size() == len(theirs) == 250_100
    assert ours.token_to_id("<extra_id_0>") == 250_099
    assert ours.token_to_id("<extra_id_99>") == 250_000
    assert ours.id_to_token(250_098) == "<extra_id_1>"
    # It finds sentinels at the beginning of a word, and there alone.
    blanks = "The <extra_id_0> walks in <extra_id_1>, a <extra_id_99>b", "x<ex"
    texts = [text for text in TEXTS if not {"\0", "#"} & set(text)]
    assert_same_ids(mt5, [*texts, *blanks])
    text = "The <extra_id_0> walks"
    assert ours.detokenize(ours([text])) == [text]


def test_what_mt5_lacks_becomes_bytes(mt5):
    theirs, ours = mt5
    text = "\U00012345 a"
    assert 2 in theirs(text)["input_ids"]
    ids = ours([text])
    assert 2 not in ids[0]
    assert ours.detokenize(ids) == [text]
    # Their byte pieces stand in a text; ours come from characters alone.
    assert 3 + 0x41 in theirs("<0x41>")["input_ids"]
    assert 3 + 0x41 not in ours(["<0x41>"])[0]
