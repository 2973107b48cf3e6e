"""Wrong command lines: one line that says so, exit code 2, nothing written."""

import functools
import os
import pathlib
import subprocess
import sys

from tests.faults.runner import ROOT, Case

_QUICK = 25
_WORKDIR = "--workdir=x"
# By binary: what it needs to come as far as the flag in question.
_NEEDS = {
    "analyze": [_WORKDIR],
    "benchmark": [],
    "convert": [],
    "generate": ["--prompt=a"],
    "pretrain": [_WORKDIR],
    "upcycle": ["--output=x"],
}
_SHARED = {
    "--surprise=1": "surprise",
    "stray": "stray",
    "--backend=mxnet": "backend",
    "--backend=": "backend",
    "--preset=nope": "preset",
    "--preset=../../etc": "preset",
    "--flagfile=nope": "nope",
    "--retain_heap=maybe": "retain_heap",
}
_NUMBERS = {
    "seed": ("-1", "5000000000", "a", "1.5", "nan", ""),
    "batch_size": ("0", "-5", "a", "1e3", "9" * 30),
    "input_length": ("0", "7", "-1", "x"),
    "minutes": ("0", "-1", "nan", "inf", "x"),
    "learning_rate": ("0", "-1", "nan", "inf", "x"),
    "balance_loss": ("-1", "nan", "inf"),
}
_OTHERS = (
    ("pretrain", ["--corpus=no/such/*.txt", _WORKDIR], "corpus"),
    ("pretrain", ["--objective=other", _WORKDIR], "objective"),
    ("pretrain", ["--dtype=float8", _WORKDIR], "dtype"),
    ("pretrain", [], "workdir"),
    ("generate", ["--preset=switch_mini", "--prompt=a"], "preset"),
    ("generate", ["--preset=."], "prompt"),
    ("generate", [_WORKDIR, "--prompt=a"], "workdir"),
    ("benchmark", ["--what=everything"], "what"),
    ("convert", ["--source=EMPTY", "--target=out"], "source"),
    ("convert", [], "source"),
    ("upcycle", [], "output"),
    ("upcycle", ["--output=x", "--num_experts=0"], "num_experts"),
)


def cases(quick: bool) -> list[Case]:
    """All cases, or some."""
    lines = [
        (binary, [flag, *needed], word)
        for binary, needed in _NEEDS.items()
        for flag, word in _SHARED.items()
    ]
    lines += [
        ("pretrain", [f"--{name}={value}", _WORKDIR], name)
        for name, values in _NUMBERS.items()
        for value in values
    ]
    found = [
        Case(
            f"{binary} {' '.join(arguments)}"[:80],
            functools.partial(_line, binary, arguments, word),
            60,
        )
        for binary, arguments, word in [*lines, *_OTHERS]
    ]
    return found[::_QUICK] if quick else found


def _line(binary, arguments, word):
    os.mkdir("EMPTY")
    before = sorted(pathlib.Path.cwd().rglob("*"))
    done = subprocess.run(
        [sys.executable, str(ROOT / "train" / f"{binary}.py"), *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, f"exit code {done.returncode}: {done.stderr}"
    # Beside the one line stands at most what libraries log when imported.
    start = f"{binary}.py: "
    lines = [x for x in done.stderr.splitlines() if x.startswith(start)]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert word in lines[0], lines[0]
    assert not done.stdout, done.stdout
    assert sorted(pathlib.Path.cwd().rglob("*")) == before
