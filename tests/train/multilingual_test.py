"""The study of languages at its smallest, and what it refuses."""

import json
import shutil

import keras
import pytest
from absl import flags
from absl.testing import flagsaver

from keras_switch import data
from keras_switch_train import flags as shared
from keras_switch_train import multilingual
from tests.data import messages_test


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    backend = keras.backend.backend()
    # The workers are processes of their own.
    monkeypatch.setenv("KERAS_SWITCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_BACKEND", backend)
    with flagsaver.flagsaver(
        backend=backend,
        workdir=str(tmp_path / "work"),
        languages=3,
        vocabulary_size=300,
        smoke=True,
    ):
        yield


@pytest.mark.slow
def test_smoke(tmp_path, monkeypatch):
    if not shutil.which("apt-get"):
        pytest.skip("apt-get is not installed")
    content = messages_test.package_of(
        {"languages": messages_test.made_up(["ru", "th"])}
    )
    path = messages_test.write_package(tmp_path / "archive", content)
    monkeypatch.setenv("APT_CONFIG", str(path))
    multilingual.main()
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert [row["arm"] for row in results["arms"]] == ["dense", "switch"]
    rows = {row["language"]: row for row in results["languages"]}
    assert set(rows) == set(data.mediawiki_messages(3))
    for row in rows.values():
        assert row["targets"] > 0 and row["dense"] > 0
        # The curve's last evaluation is of the same batches as the end's.
        curve = tmp_path / "work" / "arms" / "dense-seed0" / "curve.csv"
        last = dict(
            zip(
                *(line.split(",") for line in _ends_of(curve.read_text())),
                strict=True,
            )
        )
        found = float(last[f"val_loss of {row['language']}"])
        assert found == pytest.approx(row["dense"], abs=1e-3)
    for name in ("languages.md", "speed-ups.png", "specialisation-seed0.png"):
        assert (tmp_path / "work" / name).exists()


def _ends_of(text):
    first, *_, last = text.splitlines()
    return first, last


def test_steps_between_evaluations():
    with flagsaver.flagsaver(smoke=False, main_steps=7, interval=2):
        with pytest.raises(
            shared.UsageError, match="divide --main_steps.*2 and 7"
        ):
            multilingual.main()
