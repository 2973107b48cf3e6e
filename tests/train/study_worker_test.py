"""One arm, trained in this process at toy size."""

import csv
import json

import numpy as np
import pytest
from keras import ops

from keras_switch import data
from keras_switch_train import study_arms, study_worker
from tests import bridge

WORDS = "the cat sees a dog and house garden river market hears paints".split()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    (folder / "text").mkdir()
    texts = [" ".join(rng.choice(WORDS, 60)) + f" {i}" for i in range(300)]
    for i, text in enumerate(texts):
        (folder / "text" / f"{i}.txt").write_text(text)
    data.train_sentencepiece(texts, 300, folder / "vocabulary.spm")
    return folder


@pytest.fixture
def arm(corpus, monkeypatch):
    monkeypatch.setenv("KERAS_SWITCH_CACHE", str(corpus / "cache"))
    settings = study_arms.settings(study_arms.SWITCH)
    settings["backbone"] |= {
        "hidden_dim": 8,
        "intermediate_dim": 8,
        "num_heads": 2,
        "num_decoder_layers": 1,
        "num_experts": 2,
    }
    return settings | {
        "name": "switch",
        "seed": 0,
        "steps": 4,
        "eval_every": 2,
        "eval_batches": 1,
        "batch_size": 4,
        "corpus": f"{corpus}/text/*.txt",
        "vocabulary": f"{corpus}/vocabulary.spm",
    }


def write(folder, arm):
    folder.mkdir()
    (folder / "arm.json").write_text(json.dumps(arm))
    return str(folder)


def read(folder):
    with open(f"{folder}/curve.csv") as file:
        return list(csv.DictReader(file))


def test_an_arm_that_was_stopped_ends_as_one_that_was_not(
    arm, tmp_path, monkeypatch
):
    whole = write(tmp_path / "whole", arm)
    study_worker.main(whole)
    rows = read(whole)
    assert [row["step"] for row in rows] == ["2", "4"]
    assert float(rows[1]["seconds"]) > float(rows[0]["seconds"]) > 0
    assert float(rows[1]["cpu_seconds"]) > 0
    with open(f"{whole}/ends.json") as file:
        ends = json.load(file)
    assert ends["parameters"]["total"] > ends["parameters"]["active"]
    (domain,) = ends["domains"].values()
    for load in domain["load"].values():
        assert len(load) == 2 and sum(load) == pytest.approx(1)

    stopped = write(tmp_path / "stopped", arm | {"steps": 2})

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(study_worker, "_write_ends", stop)
        with pytest.raises(KeyboardInterrupt):
            study_worker.main(stopped)
    (tmp_path / "stopped" / "arm.json").write_text(json.dumps(arm))
    study_worker.main(stopped)
    assert [row["step"] for row in read(stopped)] == ["2", "4"]
    for name in ("loss", "val_loss"):
        assert [row[name] for row in read(stopped)] == [
            row[name] for row in rows
        ]
    study_worker.main(stopped)  # there is nothing left to train
    assert len(read(stopped)) == 2


@pytest.mark.parametrize("kind", ["hash", "soft"])
def test_another_router(kind, arm, tmp_path):
    chosen = {"name": f"router_{kind}", "router": {"kind": kind}}
    chosen["decoder_router"] = {"kind": "switch"}
    folder = write(tmp_path / kind, arm | chosen)
    study_worker.main(folder)
    first, second = read(folder)
    if kind == "hash":
        # Tables never change; the decoder's router may.
        assert first["routing/churn"] == "nan"
        assert 0 <= float(second["routing/churn"]) < 0.5
    with open(f"{folder}/ends.json") as file:
        (domain,) = json.load(file)["domains"].values()
    # Nobody chooses where all experts see all tokens.
    assert ("load" in domain) == (kind == "hash")


def test_one_process_for_an_arm(arm, tmp_path):
    folder = write(tmp_path / "busy", arm)
    with study_worker._lock(folder):
        with pytest.raises(RuntimeError, match="busy must be free"):
            study_worker.main(folder)
    with study_worker._lock(folder):
        pass  # it is free again


def test_half_router_computes_in_bfloat16(rng):
    tokens = ops.convert_to_tensor(rng.normal(size=(1, 6, 8)), "float32")
    router, half = (
        study_worker.make_router(kind, 300, num_experts=4, seed=0)
        for kind in ("switch", "half")
    )
    router.build((1, 6, 8))
    half.build((1, 6, 8))
    half.kernel.assign(router.kernel)
    for training in (False, True):  # with jitter too
        got = half._logits(tokens, training)
        np.testing.assert_array_equal(
            bridge.numpy(got),
            bridge.numpy(ops.cast(ops.cast(got, "bfloat16"), "float32")),
        )
        exact = bridge.numpy(router._logits(tokens, False))
        difference = np.abs(bridge.numpy(got) - exact).max()
        assert 0 < difference < 0.05 * np.abs(exact).max()


def test_domains_without_what_they_are_about():
    document = data.Document("text", "wiki/Arts")
    assert study_worker._domain_of(document) == "wiki"
