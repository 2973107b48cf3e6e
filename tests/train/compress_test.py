"""The binary that makes models smaller, and what it says when run again."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch import analysis, convert, models
from keras_switch_train import compress, flags
from tests.models import tiny

X = tiny.inputs(np.random.default_rng(3))
pytestmark = pytest.mark.any_backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A sparse model with a tokenizer, a task and a corpus."""
    folder = tmp_path_factory.mktemp("compress")
    keras.utils.set_random_seed(5)
    tiny.lm(tiny.preprocessor()).save_to_preset(str(folder / "preset"))
    lines = [
        json.dumps({"input": f"the {word} walks {i}", "target": word})
        for i in range(20)
        for word in ("dog", "man", "moon")
    ]
    (folder / "mine.jsonl").write_text("\n".join(lines))
    (folder / "text").mkdir()
    for i in range(40):
        text = " ".join(np.random.default_rng(i).permutation(tiny.TEXTS))
        (folder / "text" / f"{i}.txt").write_text(text)
    return folder


@pytest.fixture
def run(folder, tmp_path, capsys):
    def run(**values):
        if not absl_flags.FLAGS.is_parsed():
            absl_flags.FLAGS(["test"])
        given = {
            "backend": keras.backend.backend(),
            "preset": str(folder / "preset"),
            "output": str(tmp_path / "small"),
            "task": [str(folder / "mine.jsonl")],
            "batch_size": 8,
            "input_length": 12,
            "answer_length": 6,
            **values,
        }
        with flagsaver.flagsaver(**given):
            compress.main()
        return capsys.readouterr().out

    return run


def load(path):
    return models.SwitchSeq2SeqLM.from_preset(str(path))


def sizes(printed):
    lines = [line for line in printed.splitlines() if "bytes of" in line]
    return [int(line.split()[1].replace(",", "")) for line in lines]


def kernels(lm):
    """Dtypes of the kernels, by what they are of."""
    return {
        "experts" if "/experts/" in w.path else w.path.split("/")[-2]: str(
            keras.backend.standardize_dtype(w.dtype)
        )
        for w in lm.backbone.weights
        if w.path.endswith("kernel")
    }


def test_fewer_bits(run, folder, tmp_path):
    before, after = sizes(run(quantize="int8"))
    assert after < 0.5 * before
    small = load(tmp_path / "small")
    found = kernels(small)
    assert found.pop("router") == "float32"
    assert set(found.values()) == {"int8"} and found["experts"] == "int8"
    wanted, logits = (
        tiny.logits(lm, X) for lm in (load(folder / "preset"), small)
    )
    assert 0 < np.abs(logits - wanted).max() < 0.1 * np.abs(wanted).max()
    assert isinstance(small.generate("a dog", max_length=4), str)


def test_fewer_bits_of_the_experts_alone(run, tmp_path):
    run(quantize="int4", experts_only=True)
    found = kernels(load(tmp_path / "small"))
    assert found.pop("experts") == "int8"  # two weights in a byte
    assert set(found.values()) == {"float32"}


@pytest.mark.parametrize("way", ["prune_experts", "merge_experts"])
def test_fewer_experts(way, run, folder, tmp_path):
    printed = run(**{way: 2})
    lm = load(folder / "preset")
    with flagsaver.flagsaver(
        task=[str(folder / "mine.jsonl")],
        batch_size=8,
        input_length=12,
        answer_length=6,
    ):
        held_out = compress._of_tasks(lm, lm.preprocessor.tokenizer)
    batches = [held_out[i][0] for i in range(len(held_out))]
    report = analysis.routing_report(lm.backbone, batches)
    wanted = getattr(convert, way)(lm, 2, report)
    small = load(tmp_path / "small")
    assert small.backbone.num_experts == 2
    np.testing.assert_array_equal(tiny.logits(small, X), tiny.logits(wanted, X))
    assert small.preprocessor.encoder_sequence_length == 8
    before, after = sizes(printed)
    # Of two layers, two experts and two columns of the router.
    assert before - after == 2 * 2 * (2 * 16 * 32 + 16) * 4


def test_a_dense_one_by_a_corpus(run, folder, tmp_path):
    run(extract_dense=True, task=[], corpus=f"{folder}/text/*.txt")
    small = load(tmp_path / "small")
    assert not analysis.sparse_layers(small.backbone)


def test_run_again(run, folder, tmp_path):
    run(quantize="int8")
    weights = tmp_path / "small" / "model.weights.h5"
    before = weights.stat()
    assert "nothing is left to do" in run(quantize="int8")
    assert weights.stat() == before
    with pytest.raises(flags.UsageError, match="made with another quantize"):
        run(quantize="int4")
    again = tmp_path / "again"
    tiny.lm(tiny.preprocessor(), num_experts=3).save_to_preset(str(again))
    with pytest.raises(flags.UsageError, match="another manifest, preset"):
        run(quantize="int8", preset=str(again))
    assert weights.stat() == before


def test_whole_or_not_at_all(run, tmp_path, monkeypatch):
    def fail(self, folder):
        with open(f"{folder}/config.json", "w") as file:
            file.write("{")
        raise OSError("the disk is full")

    monkeypatch.setattr(models.SwitchSeq2SeqLM, "save_to_preset", fail)
    with pytest.raises(flags.UsageError, match="--output: the disk is full"):
        run(quantize="int8")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "values, message",
    [
        ({}, "one of --quantize, --prune_experts, .* received 0"),
        ({"quantize": "int8", "prune_experts": 2}, "received 2 of them"),
        ({"prune_experts": 2, "experts_only": True}, "goes with --quantize"),
        ({"prune_experts": 4}, "--prune_experts: num_experts must be less"),
        ({"quantize": "int8", "output": "FOLDER"}, "--output must be a new"),
        ({"quantize": "int8", "preset": "nowhere"}, "--preset: "),
        ({"merge_experts": 2, "preset": "BARE"}, "must have a tokenizer"),
        ({"merge_experts": 2, "preset": "DENSE"}, "--preset: model must have"),
    ],
)
def test_bad_flags(values, message, run, folder, tmp_path):
    dense = {"encoder_sparse_step": 0, "decoder_sparse_step": 0}
    if values.get("preset") == "BARE":
        tiny.backbone().save_to_preset(str(tmp_path / "other"))
    if values.get("preset") == "DENSE":
        lm = tiny.lm(tiny.preprocessor(), **dense)
        lm.save_to_preset(str(tmp_path / "other"))
    places = dict.fromkeys(("BARE", "DENSE"), str(tmp_path / "other"))
    places["FOLDER"] = str(folder / "preset")
    values = {name: places.get(v, v) for name, v in values.items()}
    with pytest.raises(flags.UsageError, match=message):
        run(**values)
    assert not (tmp_path / "small").exists()


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-m", "keras_switch_train.compress"]
    result = subprocess.run(
        [*command, "--preset=nowhere", "--output=a", "--quantize=int8"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "received 'nowhere'" in result.stderr
