"""Every point of a run at which it can be killed, and the killing."""

import builtins
import contextlib
import io
import json
import os
import pathlib
import threading

import keras

_OPERATIONS = (
    "fsync",
    "mkdir",
    "remove",
    "rename",
    "replace",
    "rmdir",
    "unlink",
)


class Points:
    """Counts what a run does, and sends itself a signal at one point.

    Args:
        point: Thread and number; `None`: nowhere.
        number: The signal.
        label: Of the process, where more than one has points in a folder.
    """

    def __init__(self, point=None, number=None, label=""):
        self.point, self.signal, self.label = point, number, label
        self.names = {"main": [], "writer": []}

    @contextlib.contextmanager
    def watched(self, workdir):
        """Notes the points of the block, and writes them down at its end."""
        self.workdir = workdir.resolve()
        self._watch_files()
        self._watch_callbacks()
        try:
            yield
        finally:
            if self.workdir.is_dir():
                with self._open(self._file("points.json"), "w") as file:
                    json.dump(self.names, file)

    def reach(self, name):
        main = threading.current_thread() is threading.main_thread()
        thread = "main" if main else "writer"
        here = (thread, len(self.names[thread]))
        self.names[thread].append(name)
        if here == self.point:
            os.kill(os.getpid(), self.signal)

    def _watch_files(self):
        self._open = builtins.open
        builtins.open = io.open = self._opened
        for operation in _OPERATIONS:
            setattr(os, operation, self._counted(operation))

    def _counted(self, operation):
        function = getattr(os, operation)

        def counted(path, *args, **kwargs):
            if isinstance(path, int):
                path_named = os.readlink(f"/proc/self/fd/{path}")
            else:
                path_named = path
            if "dir_fd" in kwargs and kwargs["dir_fd"] is not None:
                path_named = os.path.join(
                    os.readlink(f"/proc/self/fd/{kwargs['dir_fd']}"), path
                )
            if self._is_ours(path_named):
                self.reach(f"{operation} {_title(path_named)}")
            return function(path, *args, **kwargs)

        return counted

    def _opened(self, file, mode="r", *args, **kwargs):
        opened = self._open(file, mode, *args, **kwargs)
        writes = set(mode) & set("wax+")
        if isinstance(file, int) or not writes or not self._is_ours(file):
            return opened
        self.reach(f"open {_title(file)}")
        return _Written(opened, self, _title(file))

    def _watch_callbacks(self):
        for event in (
            "on_train_batch_begin",
            "on_train_batch_end",
            "on_test_batch_end",
            "on_epoch_end",
        ):
            self._watch(event)

    def _watch(self, event):
        kind = keras.callbacks.CallbackList
        call = getattr(kind, event)

        def watched(callbacks, *args, **kwargs):
            if event == "on_train_batch_end":
                # Without the watched `open`: no point of its own.
                with self._open(self._file("steps.txt"), "a") as file:
                    file.write("\n")
            self.reach(event)
            return call(callbacks, *args, **kwargs)

        setattr(kind, event, watched)

    def _is_ours(self, path):
        if not isinstance(path, (str, os.PathLike)):
            return False
        path = pathlib.Path(os.path.abspath(path))
        own = self._file("steps.txt")
        return path.is_relative_to(self.workdir) and path != own

    def _file(self, name):
        return self.workdir / f"{self.label}{name}"


class _Written:
    """A file that is being written; may be killed with half of it there."""

    def __init__(self, file, points, title):
        self._file, self._points, self._title = file, points, title
        self._writes = 0

    def write(self, data):
        self._writes += 1
        if self._writes & (self._writes - 1):
            return self._file.write(data)
        half = len(data) // 2
        self._file.write(data[:half])
        self._file.flush()
        self._points.reach(f"write {self._writes} of {self._title}")
        return half + self._file.write(data[half:])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __iter__(self):
        return iter(self._file)


def _title(path):
    """A path without what is random in it."""
    parts = pathlib.Path(path).parts[-3:]
    return "/".join(
        ".partial" if part.startswith(".partial-") else part for part in parts
    )
