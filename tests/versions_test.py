"""Which versions of Keras and KerasHub are let in."""

import importlib
import tomllib
from pathlib import Path

import keras
import pytest

from keras_switch import versions
from keras_switch.versions import SUPPORTED, check_versions

GOOD = {"keras": "3.15.0", "keras-hub": "0.32.9"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"keras": "3.15"},
        {"keras": "3.99.1.dev20270101"},
        {"keras-hub": "0.32.0.dev0"},
    ],
)
def test_let_in(change):
    check_versions({**GOOD, **change})


@pytest.mark.parametrize(
    ("name", "version", "advice"),
    [
        ("keras", "3.14.9", "keras>=3.15,<4"),
        ("keras", "2.15.0", "keras>=3.15,<4"),
        ("keras", "4.0.0", "keras>=3.15,<4"),
        ("keras-hub", "0.31.0", "keras-hub>=0.32,<0.33"),
        ("keras-hub", "0.33.0", "keras-hub>=0.32,<0.33"),
    ],
)
def test_refused(name, version, advice):
    with pytest.raises(ImportError, match=f"needs {name} from") as error:
        check_versions({**GOOD, name: version})
    assert version in str(error.value) and advice in str(error.value)


def test_an_import_checks(monkeypatch):
    monkeypatch.setattr(keras, "__version__", "3.14.0")
    with pytest.raises(ImportError, match="3.14.0 is installed"):
        importlib.reload(versions)


def test_it_is_what_the_project_declares():
    root = Path(__file__).resolve().parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for name, (first, end) in SUPPORTED.items():
        assert f"{name}>={first},<{end}" in project["dependencies"]
