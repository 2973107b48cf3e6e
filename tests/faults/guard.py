"""What a refusal may cost and touch, held to it."""

import builtins
import contextlib
import hashlib
import os
import sys
import sysconfig

import keras
import numpy as np

from tests.faults import runner

_READABLE = (
    *{os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)},
    os.path.realpath(sysconfig.get_paths()["purelib"]),
    *("/proc", "/sys", "/dev/null", "/dev/urandom", "/usr", "/lib"),
    str(runner.ROOT),
)
# Events of Python's audit that no loader has a use for.
_FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("os.startfile", "os.putenv", "os.chmod", "os.chown", "os.link"),
    *("subprocess.Popen", "pty.spawn", "pickle.find_class", "ftplib.connect"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"),
}
_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate"}
_CODE = (".py", ".pyc", ".so", ".pkl", ".bin")
_active: list = []


@contextlib.contextmanager
def guarded(folder, seconds=1.0, megabytes=50):
    """Fails if the block takes or touches more than it may.

    Args:
        folder: The only folder whose files it may read, besides those of
            Python and the library; it may change nothing, and take no code
            from it.
        seconds: Wall limit.
        megabytes: Memory that it may take over what there is.
    """
    if guarded not in _installed:
        sys.addaudithook(_hook)
        _installed.append(guarded)
    touched = []
    with runner.costs(seconds, megabytes):
        _active.append((os.path.realpath(folder), touched))
        try:
            yield
        finally:
            _active.pop()
    assert not touched, f"it touched {touched[0]}"


_installed: list = []


def _hook(event, arguments):
    if not _active:
        return
    folder, touched = _active[-1]
    if event in _FORBIDDEN:
        _stop(touched, f"{event}{arguments!r}")
    elif event in _CHANGES:
        _stop(touched, f"{event} {arguments[0]!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes):
        path, mode, flags = arguments
        path = os.path.realpath(os.fsdecode(path))
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if path.startswith(os.environ.get("JAX_COMPILATION_CACHE_DIR", "?")):
            return
        inside = path == folder or path.startswith(f"{folder}/")
        if writes and path != "/dev/null":
            _stop(touched, f"{path} to write")
        if inside and path.endswith(_CODE):
            _stop(touched, f"code in {path}")
        if not inside and not path.startswith(_READABLE):
            _stop(touched, path)


def _stop(touched, what):
    touched.append(what)
    raise PermissionError(f"the guard forbids {what}")


def digest(model):
    """The bytes of a model's weights, in short."""
    state = hashlib.sha256()
    for weight in model.weights:
        state.update(weight.path.encode())
        state.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)))
    return state.hexdigest()


def refused(load, folder, model=None, seconds=1.0, megabytes=50):
    """Loads a hostile folder; anything but a clear refusal fails.

    Args:
        load: Called with the path of `folder`.
        folder: The hostile folder.
        model: A model that must be bit-equal afterwards.
        seconds: See `guarded`.
        megabytes: See `guarded`.

    Returns:
        The `CheckpointError`.
    """
    from keras_switch.files import CheckpointError

    before = model and digest(model)
    policy = keras.config.dtype_policy().name
    caught = None
    builtins.hostile_code_ran = False
    with guarded(folder, seconds, megabytes):
        try:
            load(str(folder))
        except CheckpointError as error:
            caught = error.with_traceback(None)
    assert caught is not None, "it was loaded"
    assert not builtins.hostile_code_ran, "code of the folder ran"
    message = str(caught)
    assert f"{caught.file}/".startswith(
        (f"{folder}/", f"{os.path.realpath(folder)}/")
    ), f"the error names {caught.file}"
    assert caught.field and len(message) < 1000, message
    assert keras.config.dtype_policy().name == policy
    assert before is None or digest(model) == before, "the model changed"
    return caught
