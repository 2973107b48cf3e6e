import shutil

import pytest

from keras_switch.data import apt

needs_apt = pytest.mark.skipif(
    not shutil.which("apt-get"), reason="apt-get is not installed"
)


def test_stanzas_are_dicts_of_fields(tmp_path):
    (tmp_path / "a").write_text("A: 1\nB: x\n y\n\nA: 2")
    (tmp_path / "b").write_text("")
    found = list(apt.stanzas([tmp_path / "a", tmp_path / "b"]))
    assert found == [{"A": "1", "B": "x\n y"}, {"A": "2"}]


def test_the_first_error_is_the_reason():
    assert apt.reason("W: odd\nE: no\nE: later") == "E: no"
    assert apt.reason("odd\n") == "odd"
    assert apt.reason("\n") == "(no message)"


def test_without_apt_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="copy the folder here from"):
        with apt.private_apt("here"):
            pass


@needs_apt
def test_the_configuration_names_languages(tmp_path):
    with apt.private_apt(tmp_path, ("en", "fr")) as configuration:
        text = configuration.read_text()
        assert 'Acquire::Languages { "en"; "fr"; };' in text
    assert not configuration.exists()


@needs_apt
def test_what_apt_says_reaches_the_caller(tmp_path):
    with pytest.raises(RuntimeError, match="apt-get nonsense: E: Invalid"):
        with apt.private_apt(tmp_path) as configuration:
            apt.run_apt(configuration, "apt-get", "nonsense")
