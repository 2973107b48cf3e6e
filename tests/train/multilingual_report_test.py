"""Tables of planted arms."""

import json

import numpy as np
import pytest

from keras_switch_train import multilingual_report
from tests.train.study_report_test import curve, write_arm

STEPS = [100, 200, 300, 400]
MESSAGES = {
    "en": {"a": "page"},
    "de": {"a": "Seite", "b": "Tag"},
    "ru": {"a": "\u0434\u0430"},
}


def languages_of(losses, seconds):
    mean = np.mean(list(losses.values()), axis=0).tolist()
    columns = {f"val_loss of {code}": its for code, its in losses.items()}
    return curve(STEPS, mean, seconds) | columns


@pytest.fixture
def study(tmp_path):
    dense = {code: [5, 4, 3.5, 3] for code in MESSAGES}
    # Half the steps, as many, and never.
    sparse = {"en": [4, 3, 2.8, 2], "de": [5, 4, 3.5, 3], "ru": [5, 5, 4, 4]}
    ends = {code: {"loss": losses[-1]} for code, losses in dense.items()}
    write_arm(tmp_path, "dense", 0, languages_of(dense, 0.1), ends)
    loads = {"en": [1.0, 0.0], "de": [1.0, 0.0], "ru": [0.0, 1.0]}
    ends = {
        code: {
            "loss": losses[-1],
            "load": {
                "encoder_layer_0": [0.5, 0.5],
                "decoder_layer_0": loads[code],
            },
        }
        for code, losses in sparse.items()
    }
    write_arm(tmp_path, "switch", 0, languages_of(sparse, 0.15), ends)
    return tmp_path


def test_speed_up_of_each_language(study):
    found = multilingual_report.write(str(study), MESSAGES)
    rows = {row["language"]: row for row in found["languages"]}
    assert {code: row["speed-up"] for code, row in rows.items()} == {
        "en": 2.0,
        "de": 1.0,
        "ru": None,
    }
    assert rows["en"]["switch step"] == 200 and rows["en"]["gain"] == 1.0
    assert rows["de"]["messages"] == 2 and rows["ru"]["script"] == "CYRILLIC"
    (summary,) = found["summary"]
    assert summary["languages"] == 3 and summary["reached"] == 2
    assert summary["mean speed-up"] == 1.5 and summary["at least 4"] == 0
    assert summary["better at the end"] == 1


def test_what_an_expert_says_of_a_language(study):
    found = multilingual_report.write(str(study), MESSAGES)
    encoder, decoder = found["specialisation"]
    assert encoder["of language"] == encoder["of script"] == 0
    # Latin to one expert, Cyrillic to the other: all there is to say.
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert decoder["of language"] == pytest.approx(entropy, abs=1e-3)
    assert decoder["of script"] == decoder["of language"]
    assert decoder["at most"] == pytest.approx(np.log(2), abs=1e-3)


def test_files(study):
    found = multilingual_report.write(str(study), MESSAGES)
    assert json.loads((study / "results.json").read_text()) == found
    lines = (study / "languages.md").read_text().splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {
        len(found["languages"][0]) + 1
    }
    for name in ("loss.png", "speed-ups.png", "specialisation-seed0.png"):
        assert (study / name).read_bytes().startswith(b"\x89PNG")


def test_one_arm_alone(study):
    (study / "arms" / "switch-seed0" / "ends.json").unlink()  # not done yet
    found = multilingual_report.write(str(study), MESSAGES)
    assert [row["arm"] for row in found["arms"]] == ["dense"]
    assert found["languages"] == found["summary"] == []
    assert not (study / "speed-ups.png").exists()
