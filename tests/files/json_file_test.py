"""JSON that is let in, and how quickly the rest is refused."""

import os
import time

import pytest

from keras_switch.files import CheckpointError, read_json


def write(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "value"),
    [
        ('{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
        ('{"a": "' + "[" * 99 + '"}', {"a": "[" * 99}),
        (r'{"a": "\"[[[", "b": 1}', {"a": '"[[[', "b": 1}),
        ('{"\u00e9": "\U0001f600"}', {"\u00e9": "\U0001f600"}),
    ],
)
def test_read(tmp_path, content, value):
    assert read_json(write(tmp_path, content)) == value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "a": 2}', "a must be there once"),
        ('{"b": {"a": 1, "a": 2}}', "a must be there once"),
        ('{"a": -Infinity}', "without NaN and infinities"),
        ("[" * 33 + "]" * 33, "at most 32 deep"),
        ("[]", "a JSON object; received list"),
        ('{"a": ' + "9" * 5000 + "}", "must be JSON"),
        ('{"a": 1e999}', "without NaN and infinities; received 1e999"),
        ('{"a": -1E400}', "without NaN and infinities"),
        ("[" * 100_000, "at most 32 deep"),
        ('"' + r"\"" * 500_000, "must be JSON"),
        ('{"a": [' + "[]," * 200_000 + "0]}", "at most 131072 values"),
        (b" " * (1 << 20) + b"{}", "at most 1048576 bytes; received more"),
        ("{", "must be JSON"),
        ("", "must be JSON"),
        (b"\xff\xfe{}", "must be UTF-8"),
        (
            "{" + ", ".join(f'"{i}": 0' for i in range(60_000)) + ', "7": 1}',
            "7 must be there once",
        ),
    ],
)
def test_refused_at_once(tmp_path, content, message):
    path, start = write(tmp_path, content), time.process_time()
    with pytest.raises(CheckpointError, match=message):
        read_json(path)
    assert time.process_time() - start < 5


def test_no_file(tmp_path):
    with pytest.raises(CheckpointError, match="file must be readable"):
        read_json(tmp_path / "none.json")
    os.mkfifo(tmp_path / "pipe.json")  # to open it would wait for ever
    with pytest.raises(CheckpointError, match="a file; received somethi"):
        read_json(tmp_path / "pipe.json")
