"""Parts of a SavedModel of strings; tests/convert runs the whole."""

import sys

import numpy as np
import pytest

from keras_switch.ops import serving


def test_ids_that_are_text():
    ids = np.array([[0, 5, 9, 1], [7, 1, 8, 8]], "int32")
    keep = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    kept = serving.kept_ids(ids, keep, [0, 1], size=9, unknown=2)
    assert kept.to_list() == [[5, 2], [7]]


def test_strings_need_tensorflow_text(monkeypatch):
    serving.check_text()
    monkeypatch.setitem(sys.modules, "tensorflow_text", None)
    with pytest.raises(ImportError, match="pip install tensorflow-text"):
        serving.check_text()
