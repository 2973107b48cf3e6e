r"""Measures the library's parts, and rivals beside them.

    python train/benchmark.py --what=layer
    python train/benchmark.py --what=profile --sides=ours,dense
    python train/benchmark.py --what=step
    python train/benchmark.py --what=generate
    python train/benchmark.py --what=decode
    python train/benchmark.py --what=plan
    python train/benchmark.py --what=flops
    python train/benchmark.py --what=data
    python train/benchmark.py --what=convert
    python train/benchmark.py --what=checkpoint

layer: a SwitchLayer beside the rivals that --against names, forward in
    evaluation and forward + backward in training, over a grid of experts,
    tokens, widths and dtypes.
profile: which operations the time of such a call goes into, as the profiler of
    the backend sees it, for each of --sides and --calls. Wall ms add up to that
    time; in thread ms two threads at once count twice (torch shows but one).
step: a training step of a model of 4 + 4 layers beside that of transformers,
    with Adafactor, from the same weights.
generate: greedy generation beside that of transformers, on the same weights
    (4 + 4 layers), which must generate the same tokens.
decode: what a step of decoding costs by the number of experts, 8 to 128, in a
    smaller model, of which no more than the chosen experts must be read.
plan: the places of 65,536 tokens in the queues of 2,048 experts, beside the
    cumulative sum over one-hot rows that other libraries use.
flops: what the compiler counts for one forward pass of a SwitchLayer with 8 to
    256 experts, beside KerasHub's Qwen3-MoE block. JAX only.
data: tokens per second that the input pipeline makes.
convert: time and memory of loading a switch_base_8 of 619 million random
    weights that transformers wrote.
checkpoint: what --repeats checkpoints add to a training of --preset.

Prints a table, and as JSON the same with the machine and the versions; with
--workdir the JSON goes into a file there, beside a plot of the ratios. Figures
of one run may be compared, figures of two machines may not. In layer, step,
generate and decode each side has a process of its own; they are asked in turns,
--repeats times, and medians and spread are reported. There is no ratio of sides
that did not do the same work, or whose results differ.
"""

import json
import os

from absl import flags as absl_flags

from keras_switch_train import corpus, flags, heap

_ALL = "layer plan flops data profile step generate decode convert checkpoint"
_WHAT = absl_flags.DEFINE_enum(
    "what", "layer", _ALL.split(), "What to measure."
)
_EXPERTS = absl_flags.DEFINE_multi_integer(
    "experts",
    None,
    "Number of experts; may be given several times. Default: 8 and 32 for "
    "layer and profile, 8 for step and generate, 8 to 128 for decode, 8 to 256 "
    "for flops, 8, 128 and 2048 for plan.",
    lower_bound=1,
)
_TOKENS = absl_flags.DEFINE_multi_integer(
    "tokens",
    None,
    "Tokens of a call; for layer and profile it may be given several times. "
    "Default: 512 for them, 4,096 for flops, 65,536 for plan.",
    lower_bound=1,
)
_HIDDEN_DIM = absl_flags.DEFINE_integer(
    "hidden_dim",
    None,
    "Width of a token. Default: 768, 128 for flops, 256 for decode.",
    lower_bound=1,
)
_INTERMEDIATE_DIM = absl_flags.DEFINE_multi_integer(
    "intermediate_dim",
    None,
    "Width of an expert; for layer and profile it may be given several times. "
    "Default: 2,048 for flops, 1,024 for decode, 3,072 elsewhere.",
    lower_bound=1,
)
_DTYPES = absl_flags.DEFINE_multi_enum(
    "dtypes",
    None,
    ["float32", "bfloat16"],
    "layer, profile: may be given several times. Default: --dtype.",
)
_AGAINST = absl_flags.DEFINE_list(
    "against",
    None,
    "layer: what to compare with, of dense, transformers, keras_hub, einsum. "
    "Default: dense,transformers. step and generate: transformers.",
)
_TRAINING = absl_flags.DEFINE_enum(
    "training",
    "capacity",
    ["capacity", "dropless"],
    "layer, profile, step: train with capacity factor 1.25, or drop nothing.",
)
_EVALUATION = absl_flags.DEFINE_enum(
    "evaluation",
    "dropless",
    ["capacity", "dropless"],
    "layer, profile: evaluate with capacity factor 1.25, or drop nothing.",
)
_REPEATS = absl_flags.DEFINE_integer(
    "repeats",
    None,
    "Calls of each function that are timed. Default: 9. profile: that are "
    "traced, 5.",
    lower_bound=1,
)
_SIDES = absl_flags.DEFINE_list(
    "sides",
    None,
    "profile: whose layer, of ours, dense, transformers, keras_hub, einsum. "
    "Default: ours,dense.",
)
_CALLS = absl_flags.DEFINE_multi_enum(
    "calls",
    None,
    ["forward", "training"],
    "profile: which kind; may be given several times. Default: both.",
)

# What it may be compared with; the first ones are the default.
_RIVALS = {
    "layer": ("dense", "transformers", "keras_hub", "einsum"),
    "step": ("transformers",),
    "generate": ("transformers",),
}
_DEFAULT_RIVALS = 2


def main() -> None:
    from keras_switch_train import measure, results

    functions = {
        "layer": _layer,
        "profile": _profile,
        "step": _step,
        "generate": _generate,
        "decode": _decode,
        "plan": _plan,
        "flops": _flops,
        "data": _data,
        "convert": _convert,
        "checkpoint": _checkpoint,
    }
    others = (_SIDES.value or ()) if _WHAT.value == "profile" else _rivals()
    packages = ("torch", "transformers") if "transformers" in others else ()
    head = {
        "what": _WHAT.value,
        **measure.header(packages),
        "heap": _heap(),
        "load at start": _load(),
    }
    print(" | ".join(f"{name} {value}" for name, value in head.items()))
    rows = functions[_WHAT.value]()
    head["load at end"] = _load()
    results.show(rows)
    print(f"load at end {head['load at end']}")
    if flags.WORKDIR.value:
        results.write({**head, "rows": rows}, flags.make_workdir())
    else:
        print(json.dumps({**head, "rows": rows}, indent=1))


def _heap():
    kept = flags.RETAIN_HEAP.value
    return heap.retain().removeprefix("heap: ") if kept else "left alone"


def _load():
    """Processes that wanted a core in the last minute, this one included."""
    return round(os.getloadavg()[0], 2)


def _rivals():
    """What --against names, or the default."""
    known = _RIVALS.get(_WHAT.value, ())
    if _AGAINST.value is None:
        return known[:_DEFAULT_RIVALS]
    names = list(dict.fromkeys(_AGAINST.value))
    unknown = [name for name in names if name not in known]
    if not names or unknown:
        raise flags.UsageError(
            f"--against must name some of {', '.join(known) or 'nothing'} with "
            f"--what={_WHAT.value}; received {','.join(unknown) or 'nothing'}."
        )
    return names


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "corpus",
            "dtype",
            "input_length",
            "objective",
            "preset",
            "retain_heap",
            "seed",
            "workdir",
        ),
    )


def _layer():
    """A SwitchLayer beside its rivals, over a grid."""
    from keras_switch_train import layer_speed

    rivals = _rivals()
    if (list(rivals), _TRAINING.value) == (["einsum"], "dropless"):
        raise flags.UsageError(
            "--against=einsum needs --training=capacity: without a capacity it "
            "is the same code as ours."
        )
    return [
        row
        for cell in _cells()
        for row in layer_speed.compare(cell, rivals, *_how())
    ]


def _profile():
    """The operations of a layer, over the same grid."""
    from keras_switch_train import profile_layer

    sides = ["ours", "dense"] if _SIDES.value is None else _SIDES.value
    kinds = _CALLS.value or ["forward", "training"]
    return [
        row
        for cell in _cells()
        for row in profile_layer.profile(cell, sides, kinds, *_how(5))
    ]


def _cells():
    """The grid that the flags ask for."""
    from keras_switch_train import layer_speed

    factors = [
        None if flag.value == "dropless" else 1.25
        for flag in (_TRAINING, _EVALUATION)
    ]
    return layer_speed.grid(
        _EXPERTS.value or (8, 32),
        _TOKENS.value or (512,),
        _HIDDEN_DIM.value or 768,
        _INTERMEDIATE_DIM.value or (3072,),
        _DTYPES.value or [flags.DTYPE.value],
        factors,
    )


def _how(repeats=9):
    """The backend, how many calls, and whether freed memory is kept."""
    calls = _REPEATS.value or repeats
    return flags.BACKEND.value, calls, flags.RETAIN_HEAP.value


def _step():
    """A training step, ours and that of `transformers`."""
    from keras_switch_train import step_speed

    _rivals()
    rows = []
    for experts in _EXPERTS.value or (8,):
        shape = step_speed.Shape(
            experts,
            _HIDDEN_DIM.value or 768,
            _one(_INTERMEDIATE_DIM, 3072),
            capacity_factor=None if _TRAINING.value == "dropless" else 1.25,
        )
        rows += step_speed.compare(shape, *_how())
    return rows


def _plan():
    """The places of tokens in queues."""
    from keras_switch_train import compiled_cost

    tokens = _one(_TOKENS, 65_536)
    numbers = _EXPERTS.value or (8, 128, 2048)
    if (max(numbers) + 1) * tokens >= 2**31:
        raise flags.UsageError(
            "--experts: (experts + 1) * tokens must be below 2**31; received "
            f"{max(numbers)} experts and {tokens} tokens."
        )
    return compiled_cost.plan(tokens, numbers, _how()[1])


def _one(flag, default):
    """The value of a flag that may be given once here."""
    values = flag.value or [default]
    if len(values) > 1:
        raise flags.UsageError(
            f"--{flag.name} may be given once with --what={_WHAT.value}; "
            f"received {values}."
        )
    return values[0]


def _flops():
    """FLOPs of a forward pass, as the compiler counts them."""
    from keras_switch_train import compiled_cost

    if flags.BACKEND.value != "jax":
        raise flags.UsageError(
            "--what=flops needs --backend=jax: only its compiler counts "
            f"FLOPs; received --backend={flags.BACKEND.value}."
        )
    return compiled_cost.flops(
        _one(_TOKENS, 4096),
        _HIDDEN_DIM.value or 128,
        _one(_INTERMEDIATE_DIM, 2048),
        _EXPERTS.value or (8, 16, 32, 64, 128, 256),
    )


def _generate():
    """Greedy generation, ours and that of `transformers`."""
    from keras_switch_train import generate_speed, measure

    _rivals()
    print(f"the memory gives {measure.read_bandwidth():.1f} GB/s")
    rows = []
    for experts in _EXPERTS.value or (8,):
        rows += generate_speed.compare(
            generate_speed.Shape(
                experts,
                _HIDDEN_DIM.value or 768,
                _one(_INTERMEDIATE_DIM, 3072),
            ),
            [(1, 64), (8, 256)],
            *_how(),
        )
    return rows


def _decode():
    """Ours alone, by the number of experts: does a token read them all?"""
    from keras_switch_train import generate_speed

    rows = []
    for experts in _EXPERTS.value or (8, 32, 128):
        rows += generate_speed.compare(
            generate_speed.Shape(
                experts,
                _HIDDEN_DIM.value or 256,
                _one(_INTERMEDIATE_DIM, 1024),
                new_tokens=128,
            ),
            [(1, 8), (8, 8)],
            *_how(),
            rival=False,
        )
    return rows


def _checkpoint():
    """What checkpoints add to a training."""
    from keras_switch_train import checkpoint_cost

    return [checkpoint_cost.measure_saves(10, _how()[1])]


def _convert():
    """Loading a full-size checkpoint of `transformers`."""
    from keras_switch_train import conversion_cost

    return conversion_cost.measure(flags.BACKEND.value)


def _data():
    """Tokens per second of the input pipeline."""
    import tempfile

    from keras_switch import data, models

    documents = corpus.load()
    with tempfile.TemporaryDirectory() as folder:
        backbone = models.SwitchBackbone.from_preset(
            flags.PRESET.value, load_weights=False
        )
        tokenizer = corpus.make_tokenizer(
            documents.train, backbone.vocabulary_size, folder
        )
        pipeline = corpus.make_pipeline(documents.train, tokenizer, folder)
    measured = data.measure_throughput(pipeline)._asdict()
    return [{name: round(value, 3) for name, value in measured.items()}]


if __name__ == "__main__":
    run()
