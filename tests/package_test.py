"""The wheel: what it carries, what it leaves out, how it imports."""

import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "analyze",
    "benchmark",
    "compress",
    "convert",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "generate",
    "pretrain",
    "upcycle",
)
LINES_OF_IMPORT = """
import sys
import keras_switch_train
from keras_switch_train import analyze, benchmark, generate, pretrain
from keras_switch_train import evaluate, finetune, flags, heap
print(keras_switch_train.__file__)
print(sorted({"keras", "tensorflow", "torch", "jax"} & set(sys.modules)))
"""


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the sources, so that no build/ is left here."""
    source = tmp_path_factory.mktemp("source") / "keras_switch"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("keras_switch", "train", "presets", "tests"):
        shutil.copytree(
            ROOT / name,
            source / name,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel, built offline."""
    return build(source, tmp_path_factory.mktemp("wheel"))


def build(source, out):
    command = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation")
    # The moment that every file in it is dated to.
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1704067200"}
    run(*command, "--no-index", "-q", "-w", out, source, env=environment)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("target")
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "-q")
    run(*install, "--target", target, wheel)
    return target


def python_files(folder):
    return {
        path.relative_to(ROOT / folder).as_posix()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_wheel_built_twice_is_the_same(wheel, source, tmp_path):
    later = time.time() + 100
    for path in source.rglob("*.py"):
        os.utime(path, (later, later))
    assert build(source, tmp_path).read_bytes() == wheel.read_bytes()


def test_wheel_carries_neither_tests_nor_binaries(names):
    assert not [name for name in names if "tests/" in name]
    suffixes = {name.rpartition(".")[2] for name in names}
    assert suffixes <= {"py", "json", "txt", "typed"} | {
        name.rpartition(".")[2] for name in names if ".dist-info/" in name
    }


def test_wheel_carries_every_module(names):
    carried = {name for name in names if name.endswith(".py")}
    assert carried == {
        f"keras_switch/{path}" for path in python_files("keras_switch")
    } | {f"keras_switch_train/{path}" for path in python_files("train")}


def test_wheel_carries_every_preset_file(names):
    files = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "presets").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert "presets/switch_base_8/config.json" in files
    assert {f"keras_switch/{path}" for path in files} <= names


def test_wheel_installs_two_top_level_packages_only(names):
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {
        "keras_switch",
        "keras_switch_train",
    }


def test_wheel_carries_the_licence(names):
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_console_commands_name_functions_that_exist(installed):
    for command in COMMANDS:
        assert (installed / "bin" / f"keras-switch-{command}").is_file()
        module = installed / "keras_switch_train" / f"{command}.py"
        assert "def run()" in module.read_text()


def test_binaries_import_without_keras(installed, tmp_path):
    """--backend can only be honoured while Keras is not yet imported."""
    lines = run(
        "-c",
        LINES_OF_IMPORT,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    ).splitlines()
    assert Path(lines[0]).is_relative_to(installed)
    assert lines[1] == "[]"


def test_library_imports_from_the_installed_wheel(installed, tmp_path):
    printed = run(
        "-c",
        "import keras_switch; print(keras_switch.__file__)",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert Path(printed.strip()).is_relative_to(installed)


def test_requirements_name_no_exact_version():
    """An exact pin would fight with whatever else a user has installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    requirements = project["dependencies"] + [r for e in extras for r in e]
    assert not [r for r in requirements if "==" in r.split(";")[0]]
    assert not [r for r in requirements if "+cpu" in r]
