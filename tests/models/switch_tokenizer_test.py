import copy

import keras
import keras_hub
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_switch.models import SwitchTokenizer
from tests.models import tiny

BLANKS = "The <extra_id_0> walks in <extra_id_1> park"


@pytest.fixture(scope="module")
def tokenizer():
    return SwitchTokenizer(proto=tiny.proto())


def ids_of(tokenizer, text):
    return [int(i) for i in tokenizer(text)]


def test_sentinels_are_numbered_from_the_top(tokenizer):
    assert tokenizer.vocabulary_size() == 150
    for i in (0, 1, 42, 99):
        token, index = f"<extra_id_{i}>", 149 - i
        assert tokenizer.token_to_id(token) == index
        assert tokenizer.id_to_token(index) == token
        assert ids_of(tokenizer, token) == [index]
        assert tokenizer.detokenize([index]) == token
    vocabulary = tokenizer.get_vocabulary()
    assert len(vocabulary) == len(set(vocabulary)) == 150
    assert vocabulary[-1] == "<extra_id_0>"
    assert vocabulary[:3] == ["<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
@pytest.mark.parametrize(
    "text",
    [
        BLANKS,
        "<extra_id_0> man <extra_id_99>",
        "<extra_id_0> <extra_id_1> dog",
        "the earth is round",
        "<extra_id_7>",
        "",
    ],
)
def test_text_with_sentinels_round_trips(model_type, text):
    tokenizer = SwitchTokenizer(proto=tiny.proto(model_type))
    ids = ids_of(tokenizer, text)
    assert tokenizer.detokenize(ids) == text
    top = tokenizer.vocabulary_size()
    assert sum(top - 100 <= i < top for i in ids) == text.count("<extra_id_")
    assert all(0 <= i < top for i in ids)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_a_sentinel_takes_the_space_before_it(model_type):
    tokenizer = SwitchTokenizer(proto=tiny.proto(model_type))
    top = tokenizer.vocabulary_size()
    the, park = ids_of(tokenizer, "The"), ids_of(tokenizer, "park")
    wanted = [*the, top - 1, *park]
    for text in ("The <extra_id_0> park", "The<extra_id_0> park"):
        assert ids_of(tokenizer, text) == wanted


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_text_around_a_sentinel_is_encoded_by_itself(model_type):
    tokenizer = SwitchTokenizer(proto=tiny.proto(model_type))
    top = tokenizer.vocabulary_size()
    parts = "do", "g <extra_id_", "."
    for between in ("<extra_id_3>", " <extra_id_3>", " <extra_id_3>  "):
        wanted = [ids_of(tokenizer, part) for part in parts]
        wanted = [*wanted[0], top - 4, *wanted[1], top - 4, *wanted[2]]
        assert ids_of(tokenizer, between.join(parts)) == wanted


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char", "word"])
def test_control_tokens_in_text_are_text(model_type):
    tokenizer = SwitchTokenizer(proto=tiny.proto(model_type, 41))
    for text in ("dog </s> <pad> dog", "</s>", "<pad>", "dog</s>", "x<pad>"):
        assert not {0, 1} & set(ids_of(tokenizer, text))
    assert sorted(tokenizer.special_token_ids) == [0, 1]


@given(text=st.text())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_no_text_has_a_control_token(tokenizer, text):
    assert not {0, 1} & set(ids_of(tokenizer, text))


def test_control_tokens_in_text_where_asked_for():
    tokenizer = SwitchTokenizer(
        proto=tiny.proto(), special_tokens_in_strings=True
    )
    dog, sentinel = ids_of(tokenizer, "dog"), 149
    wanted = [*dog, 1, 0, *dog, 2, sentinel]
    text = "dog</s> <pad>dog <unk><extra_id_0>"
    assert ids_of(tokenizer, text) == wanted
    assert tokenizer([text, ""]) == [wanted, []]
    again = SwitchTokenizer.from_config(tokenizer.get_config())
    again.set_proto(tiny.proto())
    assert ids_of(again, text) == wanted


def test_control_tokens_without_sentinels():
    tokenizer = SwitchTokenizer(
        proto=tiny.proto(), extra_ids=0, special_tokens_in_strings=True
    )
    assert ids_of(tokenizer, "</s>") == [1]
    assert len(ids_of(tokenizer, "<extra_id_0>")) > 1


@pytest.mark.parametrize("value", [0, None, "yes"])
def test_special_tokens_in_strings_is_a_flag(value):
    with pytest.raises(ValueError, match="must be True or False; received"):
        SwitchTokenizer(proto=tiny.proto(), special_tokens_in_strings=value)


@pytest.mark.parametrize(
    "inputs",
    [b"dog \xff", "dog \ud800", "\udfff", [b"dog", b"\xc3"], ["dog", "\ud800"]],
)
def test_what_is_not_utf_8_is_refused(tokenizer, inputs):
    for call in (tokenizer, tokenizer.tokenize):
        with pytest.raises(ValueError, match="inputs must be text that UTF-8"):
            call(inputs)


def test_bytes_and_arrays_serve_as_well(tokenizer):
    ids = ids_of(tokenizer, BLANKS)
    assert ids_of(tokenizer, BLANKS.encode()) == ids
    assert tokenizer([BLANKS.encode()]) == [ids]
    assert tokenizer(np.array([BLANKS, ""])) == [ids, []]


def test_full_width_letters_are_no_sentinel(tokenizer):
    # They are normalised to the letters of one.
    wide = "".join(chr(ord(c) + 0xFEE0) for c in "<extra")
    assert max(ids_of(tokenizer, f"{wide}_id_0>")) < 50


def test_ends_stand_around_the_whole_text():
    tokenizer = SwitchTokenizer(proto=tiny.proto(), add_eos=True)
    plain = SwitchTokenizer(proto=tiny.proto())
    for text in (BLANKS, "", "<extra_id_0>"):
        assert ids_of(tokenizer, text) == [*ids_of(plain, text), 1]
    assert tokenizer.get_config()["add_eos"] is True
    with pytest.raises(ValueError, match="add_bos must be False for a proto"):
        SwitchTokenizer(proto=tiny.proto(), add_bos=True)


def test_pieces_instead_of_ids():
    tokenizer = SwitchTokenizer(proto=tiny.proto(), dtype="string")
    assert tokenizer("the<extra_id_4>dog ") == [
        *SwitchTokenizer(proto=tiny.proto(), dtype="string")("the"),
        "<extra_id_4>",
        *SwitchTokenizer(proto=tiny.proto(), dtype="string")("dog"),
    ]


def test_ids_beyond_the_vocabulary_are_unknown(tokenizer):
    # A backbone pads its vocabulary: 32,100 to 32,128 in T5.
    unknown = tokenizer.detokenize([2])
    assert tokenizer.detokenize([150]) == unknown
    assert tokenizer.detokenize([249]) == unknown
    assert tokenizer.detokenize([[149, 151]]) == [f"<extra_id_0>{unknown}"]
    assert tokenizer.detokenize(np.array([10**6])) == unknown


@pytest.mark.parametrize("ids", [[-1], [[3, -7]], np.array([-1])])
def test_negative_ids_are_refused(tokenizer, ids):
    with pytest.raises(ValueError, match="ids must be at least 0; received -"):
        tokenizer.detokenize(ids)


def test_batches_and_dense_output():
    tokenizer = SwitchTokenizer(proto=tiny.proto(), sequence_length=4)
    dense = np.asarray(tokenizer(["<extra_id_0>", "<extra_id_1>"]))
    np.testing.assert_array_equal(dense, [[149, 0, 0, 0], [148, 0, 0, 0]])


def test_the_file_on_disk_is_the_plain_model(tokenizer, tmp_path):
    tokenizer.save_assets(str(tmp_path))
    files = [path.name for path in tmp_path.iterdir()]
    assert files == ["vocabulary.spm"]
    assert (tmp_path / "vocabulary.spm").read_bytes() == tiny.proto()


def test_a_path_serves_as_well_as_bytes(tmp_path):
    path = tmp_path / "mine.spm"
    path.write_bytes(tiny.proto())
    assert SwitchTokenizer(proto=str(path)).vocabulary_size() == 150
    assert SwitchTokenizer(proto=path).vocabulary_size() == 150


def test_other_numbers_of_sentinels():
    tokenizer = SwitchTokenizer(proto=tiny.proto(), extra_ids=3)
    assert tokenizer.vocabulary_size() == 53
    assert ids_of(tokenizer, "<extra_id_2>") == [50]
    assert ids_of(tokenizer, "<extra_id_3>") != [49]
    tokenizer = SwitchTokenizer(proto=tiny.proto(), extra_ids=0)
    assert tokenizer.vocabulary_size() == 50
    assert tokenizer.detokenize([60]) == tokenizer.detokenize([2])


def test_config_holds_the_number_of_sentinels_and_no_vocabulary(tokenizer):
    config = SwitchTokenizer(proto=tiny.proto(), extra_ids=3).get_config()
    assert (config["extra_ids"], config["proto"]) == (3, None)
    again = SwitchTokenizer.from_config(config)
    again.set_proto(tiny.proto())
    assert again.vocabulary_size() == 53


def test_preset_round_trip_through_keras_hub(tokenizer, tmp_path):
    tiny.backbone().save_to_preset(str(tmp_path))
    tokenizer.save_to_preset(str(tmp_path))
    for cls in (SwitchTokenizer, keras_hub.models.Tokenizer):
        again = cls.from_preset(str(tmp_path))
        assert type(again) is SwitchTokenizer
        assert ids_of(again, BLANKS) == ids_of(tokenizer, BLANKS)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"special_tokens_in_strings": True},
        {"extra_ids": 0},
        {"extra_ids": 3, "add_eos": True},
        {"sequence_length": 6},
    ],
)
def test_a_data_pipeline_of_tensorflow_gives_the_same_ids(arguments):
    tf = pytest.importorskip("tensorflow")
    # Not the shared one: its TensorFlow op does not survive the seeding
    # before each test, which clears TensorFlow's kernels.
    tokenizer = SwitchTokenizer(proto=tiny.proto(), **arguments)
    texts = [BLANKS, "do<extra_id_3>g", "the </s> earth", "", " <unk><pad>"]
    dataset = tf.data.Dataset.from_tensor_slices(texts)
    (batch,) = dataset.batch(len(texts)).map(tokenizer)
    rows = batch.to_list() if hasattr(batch, "to_list") else batch.numpy()
    assert list(map(list, rows)) == [ids_of(tokenizer, text) for text in texts]
    for ids, text in zip(dataset.map(tokenizer), texts, strict=True):
        assert ids.dtype == "int32"
        assert list(ids.numpy()) == ids_of(tokenizer, text)


def test_a_data_pipeline_refuses_what_is_not_utf_8():
    tf = pytest.importorskip("tensorflow")
    tokenizer = SwitchTokenizer(proto=tiny.proto())
    dataset = tf.data.Dataset.from_tensor_slices([b"\xff"]).map(tokenizer)
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(dataset)


def test_a_copy_encodes_the_same(tokenizer):
    again = copy.deepcopy(tokenizer)
    assert ids_of(again, BLANKS) == ids_of(tokenizer, BLANKS)


def test_a_model_that_holds_sentinels_is_refused():
    tokenizer = SwitchTokenizer(proto=tiny.proto(), extra_ids=2)
    extended = tokenizer._sentence_piece_spm.serialized_model_proto()
    with pytest.raises(ValueError, match="with <extra_id_0>, <extra_id_1>"):
        SwitchTokenizer(proto=extended)


@pytest.mark.parametrize("extra_ids", [-1, 1.5, None])
def test_extra_ids_out_of_range(extra_ids):
    with pytest.raises(ValueError, match="extra_ids must be an int at least 0"):
        SwitchTokenizer(proto=tiny.proto(), extra_ids=extra_ids)


def test_it_is_registered_under_a_stable_name():
    name = keras.saving.get_registered_name(SwitchTokenizer)
    assert name == "keras_switch>SwitchTokenizer"
