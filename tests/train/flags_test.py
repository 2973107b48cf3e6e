"""What a user sees of the flags: each binary in a process of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TRAIN = Path(__file__).resolve().parents[2] / "train"
BINARIES = (
    "analyze",
    "benchmark",
    "compress",
    "convert",
    "export",
    "generate",
    "plan",
    "pretrain",
    "upcycle",
)


def run(binary, *arguments, cwd=None, **environment):
    inherited = dict(os.environ)
    inherited.pop("KERAS_BACKEND", None)
    return subprocess.run(
        [sys.executable, str(TRAIN / f"{binary}.py"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=inherited | environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("binary", BINARIES)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help(binary, flag):
    done = run(binary, flag)
    assert done.returncode == 0 and not done.stderr
    assert f"python train/{binary}.py" in done.stdout  # a command to copy
    for line in ("--backend=jax", "--[no]retain_heap", "--flagfile=FILE"):
        assert f"  {line}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_help_shows_the_flags_of_the_binary_only():
    assert "--minutes=5.0" in run("pretrain", "--help").stdout
    assert "--minutes" not in run("generate", "--help").stdout
    assert "--workdir" not in run("generate", "--help").stdout
    assert "--sampler" not in run("pretrain", "--help").stdout


@pytest.mark.parametrize(
    "binary, arguments, message",
    [
        ("pretrain", ["--pressset=x"], "Did you mean: preset"),
        ("pretrain", ["--workdir=x", "--batch_size=0"], "--batch_size=0"),
        ("pretrain", ["--workdir=x", "--batch_size=a"], "--batch_size=a"),
        ("pretrain", ["--workdir=x", "--backend=mxnet"], "jax|tensorflow"),
        ("pretrain", ["--workdir=x", "--minutes=0"], "must be above 0"),
        ("pretrain", ["--workdir=x", "--minutes=nan"], "--minutes=nan"),
        ("pretrain", ["--workdir=x", "--minutes=inf"], "must be finite"),
        ("pretrain", ["--workdir=x", "--balance_loss=-1"], "--balance_loss"),
        ("pretrain", ["--workdir=x", "--balance_loss=nan"], "must be finite"),
        ("pretrain", ["--workdir=x", "--learning_rate=0"], "must be above 0"),
        ("pretrain", ["--workdir=x", "--learning_rate=-1"], "must be above 0"),
        ("pretrain", ["--workdir=x", "--learning_rate=nan"], "learning_rate"),
        ("pretrain", ["--workdir=x", "--seed=5000000000"], "--seed=5000000000"),
        ("pretrain", ["--workdir=x", "--preset=nope"], "received 'nope'"),
        ("pretrain", ["--workdir=x", "--preset=nope"], "switch_mini"),
        ("pretrain", ["--workdir=x", "--corpus=no/*"], "at least one file"),
        ("pretrain", ["--workdir=x", "stray"], "received 'stray'"),
        ("pretrain", [], "--workdir must be given"),
        ("pretrain", ["--flagfile=nope"], "nope"),
        ("generate", ["--preset=."], "--prompt must hold some text"),
        ("generate", ["--preset=switch_mini"], "pretrain has written"),
        ("generate", ["--workdir=x"], "does not use --workdir"),
        ("analyze", ["--workdir=x"], "pretrain has written"),
        ("benchmark", ["--what=everything"], "layer|plan|flops|data"),
    ],
)
def test_bad_flags_are_one_line_and_exit_code_2(
    binary, arguments, message, tmp_path
):
    done = run(binary, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = [
        line
        for line in done.stderr.splitlines()
        if "heap: " not in line  # the log
    ]
    assert line.startswith(f"{binary}.py: ") and message in line
    assert not done.stdout and not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_binary_that_resumes_exits_with_75_when_told_to_stop(number):
    code = (
        "import time\n"
        "from keras_switch_train import flags\n"
        "def main():\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
        "flags.run(main, uses=('backend',), resumes=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.wait(timeout=300) == 75


def test_a_signal_in_a_callback_of_the_garbage_collector_is_not_lost():
    code = (
        "import gc, os, signal, time\n"
        "from keras_switch_train import flags\n"
        "def collect(phase, info):\n"
        "    gc.callbacks.remove(collect)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "def main():\n"
        "    gc.callbacks.append(collect)\n"
        "    gc.collect()\n"
        "    print('told', flush=True)\n"  # what was raised is lost by now
        "    try:\n"
        "        time.sleep(600)\n"
        "    finally:\n"
        "        print('in order', flush=True)\n"
        "flags.run(main, uses=('backend',), resumes=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 75, done.stderr
    assert done.stdout.split("\n") == ["told", "in order", ""]
    assert "Traceback" not in done.stderr


def test_flagfile(tmp_path):
    (tmp_path / "my.flags").write_text("--workdir=x\n--preset=from_file\n")
    done = run("pretrain", "--flagfile=my.flags", cwd=tmp_path)
    assert "received 'from_file'" in done.stderr


def test_backend_of_the_environment_is_checked_like_a_flag():
    done = run("pretrain", "--workdir=x", KERAS_BACKEND="openvino")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--backend=openvino: must be one of jax|tensorflow|torch" in line
    # A flag goes before the environment.
    done = run("generate", "--backend=jax", KERAS_BACKEND="openvino")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "pretrain has written" in line


def test_backend_of_the_environment_is_the_default():
    done = run("pretrain", "--help", KERAS_BACKEND="torch")
    assert "  --backend=torch\n" in done.stdout
