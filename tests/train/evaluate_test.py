"""Evaluation: what an answer costs, and answers of a SavedModel."""

import json

import keras
import numpy as np
import pytest
from absl.testing import flagsaver

from keras_switch import convert
from keras_switch_train import answer_cost, evaluate, flags, served
from tests.models import tiny
from tests.train.clock import Clock
from tests.train.finetune_test import parsed as parsed

WORDS = "dog cat man moon river".split()


@pytest.fixture
def task(tmp_path):
    lines = [
        json.dumps({"input": f"the {word} walks {i}", "target": word})
        for i in range(20)
        for word in WORDS
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "mine.jsonl")


def save(lm, packer, tmp_path):
    lm.preprocessor = packer
    lm.save_to_preset(str(tmp_path / "preset"))
    return str(tmp_path / "preset")


@pytest.mark.any_backend
def test_answers_are_timed_one_at_a_time(monkeypatch):
    clock, asked = Clock(), []
    monkeypatch.setattr(answer_cost, "time", clock)

    def answer(examples):
        asked.append(list(examples))
        # As if each were of a length that is not compiled yet.
        clock.sleep(0.5 if len(asked) <= 3 else 0.01 * examples[0])
        return examples

    found = answer_cost.latency(answer, [1, 2, 3])
    assert asked == [[1], [2], [3], [1], [2], [3]]
    assert found["answers"] == 3
    assert found["median_ms"] == pytest.approx(20)
    assert found["longest_ms"] == pytest.approx(30)


@pytest.mark.any_backend
def test_bytes_of_a_folder(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").write_bytes(b"123")
    assert answer_cost.folder_bytes(str(tmp_path)) == 8


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no SavedModel"
)
def test_a_saved_model_answers_as_its_preset(task, tmp_path, capsys):
    # Each takes a minute: a backend runs one of the two.
    kind = "lm" if keras.backend.backend() == "jax" else "causal_lm"
    lm = getattr(tiny, kind)()
    packer = getattr(tiny, kind.replace("lm", "preprocessor"))()
    preset = save(lm, packer, tmp_path)
    lm.compile(sampler="greedy")
    answer, length = 5, 12
    if kind == "lm":
        length = packer.encoder_sequence_length
    folder = str(tmp_path / "served")
    convert.export_saved_model(
        lm,
        folder,
        input_length=length,
        max_length=answer + (1 if kind == "lm" else length),
        stop_token_ids=[packer.tokenizer.end_token_id],
    )
    said = dict(preset=preset, task=[task], answer_length=answer, batch_size=4)
    found = {}
    for name in (None, folder):
        out = tmp_path / "out.json"
        with flagsaver.flagsaver(
            **said, saved_model=name, results=str(out), timed_examples=2
        ):
            evaluate.main()
        found[name] = json.loads(out.read_text())["tasks"]["mine"]
    costs = [found[name].pop("cost") for name in (None, folder)]
    assert found[None] == found[folder]
    for cost, path in zip(costs, (preset, folder), strict=True):
        assert cost["megabytes"] == answer_cost.folder_bytes(path) / 1e6
        assert cost["median_ms"] > 0
    assert "MB on disk; an answer takes" in capsys.readouterr().out


@pytest.mark.skipif(
    keras.backend.backend() == "torch", reason="torch has no SavedModel"
)
def test_what_cannot_answer_is_refused(tmp_path):
    import tensorflow as tf

    with pytest.raises(ValueError, match="folder of a SavedModel; received"):
        served.ServedModel(str(tmp_path))
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(ValueError, match="that takes token ids"):
        served.ServedModel(str(tmp_path / "other"))
    lm = tiny.lm()
    lm.compile(sampler="greedy")
    convert.export_saved_model(
        lm,
        tmp_path / "short",
        input_length=4,
        max_length=3,
        stop_token_ids=None,
    )
    model = served.ServedModel(str(tmp_path / "short"))
    ids = np.ones((2, 5), "int32")
    x = {"encoder_token_ids": ids, "encoder_padding_mask": ids}
    with pytest.raises(ValueError, match="at most 4 columns, .* received 5"):
        model.generate(x)


@pytest.mark.any_backend
def test_a_missing_saved_model_names_its_flag(tmp_path):
    preset = save(tiny.lm(), tiny.preprocessor(), tmp_path)
    with flagsaver.flagsaver(preset=preset, saved_model="nowhere"):
        with pytest.raises(flags.UsageError, match="--saved_model: must be"):
            evaluate._load_model()


@pytest.mark.any_backend
def test_a_saved_model_cannot_score_labels(tmp_path):
    preset = save(tiny.causal_lm(), tiny.causal_preprocessor(), tmp_path)
    said = {"saved_model": "nowhere", "shots": 1, "answer_length": 5}
    with flagsaver.flagsaver(preset=preset, **said):
        with pytest.raises(flags.UsageError, match="--saved_model generates"):
            evaluate._load_model()
