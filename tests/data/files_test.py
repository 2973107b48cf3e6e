import pytest

from keras_switch.data import cache_directory


def test_the_argument_goes_before_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_SWITCH_CACHE", str(tmp_path / "environment"))
    assert cache_directory(tmp_path / "given") == tmp_path / "given"
    assert cache_directory() == tmp_path / "environment"
    assert (tmp_path / "environment").is_dir()


def test_the_default_is_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.delenv("KERAS_SWITCH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "keras_switch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    expected = tmp_path / "home" / ".cache" / "keras_switch"
    assert cache_directory() == expected


def test_a_file_is_no_cache_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(NotADirectoryError, match="cache_dir must be a folder"):
        cache_directory(tmp_path / "taken")
