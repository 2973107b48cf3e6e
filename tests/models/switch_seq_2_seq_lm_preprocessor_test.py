import concurrent.futures

import keras_hub
import numpy as np
import pytest
from keras import ops

from keras_switch.models import SwitchSeq2SeqLMPreprocessor, SwitchTokenizer
from tests.models import tiny


@pytest.fixture
def preprocessor():
    return tiny.preprocessor()


def numpy(structure):
    return {k: ops.convert_to_numpy(v) for k, v in structure.items()}


def test_what_fit_is_given(preprocessor):
    text = {"encoder_text": ["the <extra_id_0>"], "decoder_text": ["earth"]}
    the = [int(i) for i in preprocessor.tokenizer("the")]
    earth = [int(i) for i in preprocessor.tokenizer("earth")]
    x, y, sample_weight = preprocessor(text)
    x = numpy(x)

    def padded(ids, length):
        return [(ids + [0] * length)[:length]]

    def ones(count, length):
        return [[int(i < count) for i in range(length)]]

    encoder = [*the, 149, 1]
    assert x["encoder_token_ids"].tolist() == padded(encoder, 8)
    assert x["encoder_padding_mask"].tolist() == ones(len(encoder), 8)
    # The decoder starts from padding and is not told the end.
    decoder = [0, *earth]
    assert x["decoder_token_ids"].tolist() == padded([*decoder, 1], 6)
    assert x["decoder_padding_mask"].tolist() == ones(len(decoder) + 1, 6)
    y = ops.convert_to_numpy(y)
    assert y.tolist() == padded([*earth, 1], 6)
    weight = ops.convert_to_numpy(sample_weight)
    assert weight.tolist() == ones(len(earth) + 1, 6)


def test_what_generation_is_given(preprocessor):
    x = numpy(preprocessor.generate_preprocess(["the", "the earth"]))
    assert x["decoder_token_ids"].tolist() == [[0] * 6] * 2
    assert x["decoder_padding_mask"].tolist() == [[1, 0, 0, 0, 0, 0]] * 2
    assert x["encoder_token_ids"].shape == (2, 8)


def test_texts_that_are_too_long_are_cut_or_refused(preprocessor):
    text = "the earth is round, and the moon"
    count = len(preprocessor.tokenizer(text)) + 1
    cut = numpy(preprocessor.generate_preprocess(["the", text]))
    assert cut["encoder_padding_mask"][1].all()
    with pytest.raises(
        ValueError,
        match=f"encoder_text must .* 8 tokens; received {count} in row 1",
    ):
        preprocessor.generate_preprocess(["the", text], truncate=False)
    with pytest.raises(ValueError, match=f"{count} in row 0"):
        preprocessor.generate_preprocess(text, truncate=False)
    both = {"encoder_text": ["the"], "decoder_text": [text]}
    with pytest.raises(ValueError, match="decoder_text must .* most 6 tokens"):
        preprocessor.generate_preprocess(both, truncate=False)
    # Longest lengths that fit are not refused.
    preprocessor.generate_preprocess(
        {"encoder_text": [text], "decoder_text": [text]},
        encoder_sequence_length=count,
        sequence_length=count,
        truncate=False,
    )


def test_what_comes_back_from_generation(preprocessor):
    the = [int(i) for i in preprocessor.tokenizer("the")]
    ids = np.array([[0, 149, *the, 1, 5, 5, 5]])[:, : len(the) + 4]
    mask = np.ones_like(ids)
    mask[:, len(the) + 3 :] = 0
    rows = {"decoder_token_ids": ids, "decoder_padding_mask": mask}
    assert preprocessor.generate_postprocess(rows) == ["<extra_id_0> the"]
    one = {name: row[0] for name, row in rows.items()}
    assert preprocessor.generate_postprocess(one) == "<extra_id_0> the"


def test_lengths_survive_the_config(preprocessor):
    config = preprocessor.get_config()
    again = SwitchSeq2SeqLMPreprocessor.from_config(config)
    assert again.encoder_sequence_length == 8
    assert again.decoder_sequence_length == 6


def test_preset_round_trip_through_keras_hub(preprocessor, tmp_path):
    tiny.backbone().save_to_preset(str(tmp_path))
    preprocessor.save_to_preset(str(tmp_path))
    for cls in (
        SwitchSeq2SeqLMPreprocessor,
        keras_hub.models.Seq2SeqLMPreprocessor,
    ):
        again = cls.from_preset(str(tmp_path))
        assert type(again) is SwitchSeq2SeqLMPreprocessor
        assert type(again.tokenizer) is SwitchTokenizer
        assert again.encoder_sequence_length == 8
        assert again.built
    again = SwitchSeq2SeqLMPreprocessor.from_preset(
        str(tmp_path), encoder_sequence_length=3
    )
    assert again.encoder_sequence_length == 3
    assert again.decoder_sequence_length == 6


def test_it_is_built_before_threads_can_race():
    preprocessor = tiny.preprocessor()
    assert preprocessor.built
    text = {"encoder_text": ["the"], "decoder_text": ["earth"]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: preprocessor(text), range(32)))
    first = numpy(results[0][0])
    for x, _, _ in results:
        for name, value in numpy(x).items():
            np.testing.assert_array_equal(value, first[name])
