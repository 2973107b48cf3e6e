"""The vocabularies of T5 and mT5, where there is a network to fetch them."""

import pathlib

import pytest

from keras_switch.data.vocabulary import fetch_vocabulary


def fetch(name: str) -> pathlib.Path:
    """Path of a vocabulary in the user's cache; skips the test without."""
    try:
        return fetch_vocabulary(name)
    except RuntimeError as error:
        pytest.skip(f"pip cannot reach its index: {error}")
