import hashlib
import subprocess
import zipfile

import pytest

from keras_switch.data import Wheel, fetch_wheel

NAME = "kstext-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for the whole package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    info = "kstext-1.0.dist-info"
    with zipfile.ZipFile(folder / NAME, "w") as wheel:
        wheel.writestr("kstext/text.txt", "some text")
        wheel.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: kstext\nVersion: 1.0\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_pip_fetches_once_and_installs_nothing(index, tmp_path, monkeypatch):
    wheel = Wheel("kstext==1.0", NAME, digest_of(index / NAME))
    path = fetch_wheel(wheel, tmp_path / "cache")
    assert path == tmp_path / "cache" / "wheels" / NAME
    assert path.read_bytes() == (index / NAME).read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [NAME]

    def no_network(*args, **kwargs):
        raise AssertionError("the cached file must do")

    monkeypatch.setattr(subprocess, "run", no_network)
    assert fetch_wheel(wheel, tmp_path / "cache") == path


def test_a_wrong_file_is_refused_and_not_cached(index, tmp_path):
    wheel = Wheel("kstext==1.0", NAME, "0" * 64)
    with pytest.raises(ValueError, match="must have the sha256 digest 000"):
        fetch_wheel(wheel, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "wheels").iterdir())


def test_a_cached_file_that_changed_is_refused(index, tmp_path):
    wheel = Wheel("kstext==1.0", NAME, digest_of(index / NAME))
    path = fetch_wheel(wheel, tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="Delete the file"):
        fetch_wheel(wheel, tmp_path / "cache")


def test_no_such_package_says_what_to_do(index, tmp_path):
    wheel = Wheel("kstext==2.0", "kstext-2.0-py3-none-any.whl", "0" * 64)
    with pytest.raises(RuntimeError) as error:
        fetch_wheel(wheel, tmp_path / "cache")
    assert "could not fetch kstext==2.0 through pip" in str(error.value)
    assert "put the file kstext-2.0-py3-none-any.whl into" in str(error.value)
    assert not list((tmp_path / "cache" / "wheels").iterdir())


def test_another_file_name_is_reported(index, tmp_path):
    wheel = Wheel("kstext==1.0", "kstext-1.0-cp311-linux.whl", "0" * 64)
    with pytest.raises(RuntimeError, match=f"received .*{NAME}"):
        fetch_wheel(wheel, tmp_path / "cache")
