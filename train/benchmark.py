r"""Measures the library's parts.

    python train/benchmark.py --what=layer
    python train/benchmark.py --what=plan
    python train/benchmark.py --what=flops
    python train/benchmark.py --what=data
    python train/benchmark.py --what=generate
    python train/benchmark.py --what=step
    python train/benchmark.py --what=convert

layer: a SwitchLayer beside a dense feed-forward of the same active FLOPs,
    forward and a training step, for each number of experts.
plan: the places of 65,536 tokens in the queues of 2,048 experts, beside the
    cumulative sum over one-hot rows that other libraries use.
flops: what the compiler counts for one forward pass of a SwitchLayer with 8 to
    256 experts, beside KerasHub's Qwen3-MoE block. JAX only.
data: tokens per second that the input pipeline makes.
generate: greedy generation beside that of transformers, on the same weights
    (4 + 4 layers), which must generate the same tokens. Each side has a process
    of its own; they are asked in turns.
step: what a step of decoding costs by the number of experts, 8 to 128, in a
    smaller model, of which no more than the chosen experts must be read.
convert: time and memory of loading a switch_base_8 of 619 million random
    weights that transformers wrote.

Prints a table, and as JSON the same with the machine and the versions. Figures
of one run may be compared, figures of two machines may not: the functions are
timed in turns, and the median of --repeats calls is reported.
"""

import json
import os

import numpy as np
from absl import flags as absl_flags

from keras_switch_train import corpus, flags

_WHAT = absl_flags.DEFINE_enum(
    "what",
    "layer",
    ["layer", "plan", "flops", "data", "generate", "step", "convert"],
    "What to measure.",
)
_EXPERTS = absl_flags.DEFINE_multi_integer(
    "experts",
    None,
    "Number of experts; may be given several times. Default: 8 and 32 for "
    "layer, 8 to 256 for flops, 8, 128 and 2048 for plan.",
    lower_bound=1,
)
_TOKENS = absl_flags.DEFINE_integer(
    "tokens",
    None,
    "Tokens of a call, all of one group. Default: 512 for layer, 4,096 for "
    "flops, 65,536 for plan.",
    lower_bound=1,
)
_HIDDEN_DIM = absl_flags.DEFINE_integer(
    "hidden_dim",
    None,
    "Width of a token. Default: 768 for layer, 128 for flops.",
    lower_bound=1,
)
_INTERMEDIATE_DIM = absl_flags.DEFINE_integer(
    "intermediate_dim",
    None,
    "Width of an expert. Default: 3,072 for layer, 2,048 for flops.",
    lower_bound=1,
)
_REPEATS = absl_flags.DEFINE_integer(
    "repeats", 9, "Calls of each function that are timed.", lower_bound=1
)


def main() -> None:
    from keras_switch_train import measure

    functions = {
        "layer": _layer,
        "plan": _plan,
        "flops": _flops,
        "data": _data,
        "generate": _generate,
        "step": _step,
        "convert": _convert,
    }
    head = {"what": _WHAT.value, **measure.header()}
    print(" | ".join(f"{name} {value}" for name, value in head.items()))
    rows = functions[_WHAT.value]()
    _print_table(rows)
    result = json.dumps({**head, "rows": rows}, indent=1)
    if flags.WORKDIR.value:
        from keras_switch import files

        path = os.path.join(flags.make_workdir(), f"{_WHAT.value}.json")
        with files.atomic_write(path) as file:
            file.write_text(result, encoding="utf-8")
    else:
        print(result)


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
    """Milliseconds of a SwitchLayer and of the dense layer beside it."""
    from keras_switch import SwitchLayer
    from keras_switch.layers import FeedForward
    from keras_switch_train import measure

    tokens = _TOKENS.value or 512
    width = _HIDDEN_DIM.value or 768
    inner = _INTERMEDIATE_DIM.value or 3072
    models = {"dense": _model(FeedForward(inner), width)}
    for experts in _EXPERTS.value or (8, 32):
        layer = SwitchLayer(experts, inner, eval_capacity_factor=1.25)
        models[f"switch, {experts} experts"] = _model(layer, width)
    x = np.random.default_rng(0).normal(size=(1, tokens, width))
    x = x.astype("float32")
    calls = {}
    for name, model in models.items():
        calls[name, "forward"] = lambda m=model: m.predict_on_batch(x)
        calls[name, "training"] = lambda m=model: m.train_on_batch(x, x)
    times = measure.interleaved(calls, _REPEATS.value)
    rows = []
    for name in models:
        row = {"layer": name, "tokens": tokens}
        for kind in ("forward", "training"):
            median, best = times[name, kind]
            row[f"{kind} ms"] = round(1e3 * median, 2)
            row[f"{kind} best ms"] = round(1e3 * best, 2)
            dense = times["dense", kind].median
            row[f"{kind} / dense"] = round(median / dense, 2)
        rows.append(row)
    return rows


def _model(layer, width):
    import keras

    inputs = keras.Input((None, width))
    model = keras.Model(inputs, layer(inputs))
    model.compile(
        keras.optimizers.SGD(1e-3), "mse", jit_compile=flags.jit_compile()
    )
    return model


def _plan():
    """Milliseconds and megabytes of the places of tokens in queues."""
    from keras import ops

    from keras_switch.ops.indexing import queue_positions
    from keras_switch_train import measure

    tokens = _TOKENS.value or 65_536
    numbers = _EXPERTS.value or (8, 128, 2048)
    if (max(numbers) + 1) * tokens >= 2**31:
        raise flags.UsageError(
            "--experts: (experts + 1) * tokens must be below 2**31; received "
            f"{max(numbers)} experts and {tokens} tokens."
        )

    def one_hot(index, experts):
        hot = ops.one_hot(index, experts, dtype="int32")  # [1, M, E]
        return ops.sum(ops.cumsum(hot, axis=1) * hot, axis=-1) - 1

    rows = []
    for experts in numbers:
        draw = np.random.default_rng(0).integers(0, experts, (1, tokens))
        index = ops.convert_to_tensor(draw, "int32")
        functions = {
            "packed sort": lambda i, e=experts: queue_positions(i, e),
            "one-hot cumsum": lambda i, e=experts: one_hot(i, e),
        }
        compiled = {
            name: measure.compiled(function)
            for name, function in functions.items()
        }
        calls = {
            name: lambda f=function, i=index: f(i)
            for name, function in compiled.items()
        }
        results = [ops.convert_to_numpy(call()) for call in calls.values()]
        if not (results[0] == results[1]).all():
            raise RuntimeError("The two methods must agree; they differ.")
        times = measure.interleaved(calls, _REPEATS.value)
        for name, function in functions.items():
            row = {"tokens": tokens, "experts": experts, "method": name}
            row["ms"] = round(1e3 * times[name].median, 3)
            row["best ms"] = round(1e3 * times[name].best, 3)
            price = measure.cost(function, index)
            if price:
                row["temporary MB"] = round(price["temporary_bytes"] / 1e6, 1)
            rows.append(row)
    return rows


def _flops():
    """FLOPs of a forward pass, as the compiler counts them."""
    from keras import ops

    from keras_switch import SwitchLayer
    from keras_switch_train import measure

    if flags.BACKEND.value != "jax":
        raise flags.UsageError(
            "--what=flops needs --backend=jax: only its compiler counts "
            f"FLOPs; received --backend={flags.BACKEND.value}."
        )
    tokens = _TOKENS.value or 4096
    width = _HIDDEN_DIM.value or 128
    inner = _INTERMEDIATE_DIM.value or 2048
    x = ops.ones((1, tokens, width))
    rows = []
    for experts in _EXPERTS.value or (8, 16, 32, 64, 128, 256):
        ours = SwitchLayer(
            experts, inner, dispatch="gather", eval_capacity_factor=1.25
        )
        layers = {
            "SwitchLayer": ours,
            "Qwen3-MoE block": _qwen3_moe_block(experts, width, inner),
        }
        row = {"experts": experts, "tokens": tokens}
        for name, layer in layers.items():
            layer.build(x.shape)
            call, weights = measure.forward(layer)
            flops = measure.cost(call, *weights, x)["flops"]
            row[f"{name}, MFLOP per token"] = round(flops / tokens / 1e6, 3)
            first = rows[0] if rows else row
            smallest = first[f"{name}, MFLOP per token"]
            row[f"{name}, growth"] = round(flops / tokens / 1e6 / smallest, 2)
        rows.append(row)
    return rows


def _generate():
    """Greedy generation, ours and that of `transformers`."""
    from keras_switch_train import generate_speed, measure

    print(f"the memory gives {measure.read_bandwidth():.1f} GB/s")
    rows = []
    for experts in _EXPERTS.value or (8,):
        rows += generate_speed.compare(
            generate_speed.Shape(
                experts,
                _HIDDEN_DIM.value or 768,
                _INTERMEDIATE_DIM.value or 3072,
            ),
            [(1, 64), (8, 256)],
            flags.BACKEND.value,
            _REPEATS.value,
            flags.RETAIN_HEAP.value,
        )
    return rows


def _step():
    """Ours alone, by the number of experts: does a token read them all?"""
    from keras_switch_train import generate_speed

    rows = []
    for experts in _EXPERTS.value or (8, 32, 128):
        rows += generate_speed.compare(
            generate_speed.Shape(
                experts,
                _HIDDEN_DIM.value or 256,
                _INTERMEDIATE_DIM.value or 1024,
                new_tokens=128,
            ),
            [(1, 8), (8, 8)],
            flags.BACKEND.value,
            _REPEATS.value,
            flags.RETAIN_HEAP.value,
            rival=False,
        )
    return rows


def _convert():
    """Loading a full-size checkpoint of `transformers`."""
    from keras_switch_train import conversion_cost

    return conversion_cost.measure(flags.BACKEND.value)


def _qwen3_moe_block(experts, width, inner):
    """KerasHub's block, found in a small public model."""
    import keras_hub

    backbone = keras_hub.models.Qwen3MoeBackbone(
        vocabulary_size=4,
        num_layers=1,
        num_query_heads=1,
        num_key_value_heads=1,
        head_dim=4,
        hidden_dim=4,
        intermediate_dim=4,
        moe_intermediate_dim=4,
        num_experts=2,
        top_k=1,
        norm_top_k_prob=False,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    (block,) = (
        layer
        for layer in backbone._flatten_layers()
        if hasattr(layer, "expert_bank")
    )
    return type(block)(
        hidden_dim=width,
        moe_intermediate_dim=inner,
        num_experts=experts,
        top_k=1,
        norm_top_k_prob=False,
    )


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


def _print_table(rows):
    from rich.table import Table

    from keras_switch_train import report

    table = Table()
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        values = ("" if value is None else value for value in row.values())
        table.add_row(*map(str, values))
    report.console().print(table)


if __name__ == "__main__":
    run()
