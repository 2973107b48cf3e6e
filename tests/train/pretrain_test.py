"""Parts of pre-training that need no training; a run is in binaries_test."""

import types

import keras
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import models, resume
from keras_switch_train import corpus, flags, pretrain
from tests.models import tiny


@pytest.fixture(autouse=True)
def parsed():
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    backend = keras.backend.backend()
    with flagsaver.flagsaver(backend=backend, samples=2, input_length=12):
        yield


@pytest.fixture
def documents():
    words = " ".join(tiny.TEXTS).split()
    return [types.SimpleNamespace(text=" ".join(words[i:])) for i in range(5)]


@pytest.mark.parametrize("input_length", [8, 10, 12, 14, 32])
def test_samples_of_short_rows_have_fewer_blanks(
    input_length, documents, tmp_path
):
    tiny.lm(tiny.preprocessor()).save_to_preset(str(tmp_path / "preset"))
    with flagsaver.flagsaver(input_length=input_length):
        pretrain._show_samples(documents, str(tmp_path))
    lines = (tmp_path / "samples.txt").read_text().splitlines()
    truths = [line for line in lines if line.startswith("truth: ")]
    blanks = {8: 1, 10: 2, 12: 2, 14: 3, 32: 3}[input_length]
    assert [line.count("[") for line in truths] == [blanks] * 2


def test_samples_are_of_the_dtype_of_the_run(documents, tmp_path, monkeypatch):
    lm = tiny.lm(tiny.preprocessor(), dtype="mixed_bfloat16")
    lm.save_to_preset(str(tmp_path / "preset"))
    load, seen = models.SwitchSeq2SeqLM.from_preset, []

    def from_preset(*args, **kwargs):
        seen.append(load(*args, **kwargs))
        return seen[0]

    monkeypatch.setattr(models.SwitchSeq2SeqLM, "from_preset", from_preset)
    with flagsaver.flagsaver(dtype="mixed_bfloat16"):
        pretrain._show_samples(documents, str(tmp_path))
    assert seen[0].backbone.dtype_policy.name == "mixed_bfloat16"
    assert (tmp_path / "samples.txt").exists()


def test_the_code_that_asks_for_another_start_is_the_library_s():
    assert flags._AGAIN == resume.EXIT_CODE


def test_samples_are_whole_or_absent(documents, tmp_path, broken_rename):
    tiny.lm(tiny.preprocessor()).save_to_preset(str(tmp_path / "preset"))
    path = tmp_path / "samples.txt"
    path.write_text("old")
    with broken_rename():
        pretrain._show_samples(documents, str(tmp_path))
    assert path.read_text() == "old"


def test_the_objective_says_whether_there_is_an_encoder(tmp_path):
    tokenizer = tiny.preprocessor().tokenizer
    pipeline = types.SimpleNamespace(input_length=9, target_length=9)
    with flagsaver.flagsaver(
        objective="next_token", preset="switch_causal_mini"
    ):
        lm = pretrain._make_model(pretrain._make_backbone())
        assert type(lm) is models.SwitchCausalLM
        lm = tiny.causal_lm()
        corpus.save(lm, tokenizer, pipeline, str(tmp_path))
    again = models.SwitchCausalLM.from_preset(tmp_path / "preset")
    assert again.preprocessor.sequence_length == 9


@pytest.mark.parametrize(
    "objective, preset",
    [("next_token", "switch_mini"), ("prefix_lm", "switch_causal_mini")],
)
def test_a_preset_of_the_other_kind_is_refused(objective, preset):
    with flagsaver.flagsaver(objective=objective, preset=preset):
        with pytest.raises(flags.UsageError, match="--preset.*registered_name"):
            pretrain._make_backbone()
