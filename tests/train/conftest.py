"""What tests of files share."""

import contextlib
import os

import pytest


@pytest.fixture
def broken_rename(monkeypatch):
    """A context in which a file is written but never gets its name."""

    @contextlib.contextmanager
    def context():
        def replace(*_):
            raise OSError("interrupted")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            with pytest.raises(OSError, match="interrupted"):
                yield

    return context
