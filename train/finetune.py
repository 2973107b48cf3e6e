r"""Fine-tunes a model on tasks.

    python train/finetune.py --preset=runs/switch_mini/preset \
        --task=debian_section --workdir=runs/section

trains for five minutes with the Switch paper's recipe (dropout 0.1, in the
experts 0.4, capacity factor 2, a constant rate), keeps the weights of the best
evaluation, saves them and prints the metrics of the test side, beside those of
an answer that takes no model. docs/tasks.md says what to expect of which task.

Killed, or told to stop by SIGTERM or Ctrl-C, the same command goes on where it
was; told to stop, it exits with code 75. docs/resume.md says what is promised.

The work directory then holds:

    preset/         the model with its tokenizer; --preset of the other binaries
    results.json    metrics of each task, the best step, the flags
    history.csv     losses, rates and routing statistics, a row an evaluation
    history.json    the same, with the flags of this run
    vocabulary.spm  the SentencePiece vocabulary
    *.png           plots of all these
    checkpoints/    where the same command goes on; remove it to begin anew

More:

    --task=mine.jsonl             your own: lines with "input" and "target"
    --task=debian_summary,headline --mixing_temperature=2     a mixture
    --update=all_but_experts      which weights are trained
    --update=lora --lora_rank=8   small matrices beside those of attention,
                                  feed-forwards and experts
    --select=accuracy             the best checkpoint by a metric, not the loss
    --preset=switch_mini          random weights, for comparison
    --balance_loss=0              what becomes of routing without it
    --mesh=batch:4,model:2        over 8 devices, on JAX; see docs/sharding.md
"""

import json
import math
import os

from absl import flags as absl_flags
from absl import logging

from keras_switch_train import (
    corpus,
    flags,
    mesh,
    task_data,
    task_flags,
    training,
)

_RATE = absl_flags.DEFINE_float(
    "rate",
    None,
    "Constant learning rate, relative to the size of each weight (Adafactor), "
    "by default the paper's 0.001; with --update=lora absolute (Adam), as "
    "adapters start at 0, by default 0.01.",
)
_DROPOUT = absl_flags.DEFINE_float(
    "dropout", 0.1, "Dropout rate.", lower_bound=0, upper_bound=0.99
)
_EXPERT_DROPOUT = absl_flags.DEFINE_float(
    "expert_dropout",
    0.4,
    "Dropout rate inside the experts.",
    lower_bound=0,
    upper_bound=0.99,
)
_TRAIN_CAPACITY = absl_flags.DEFINE_float(
    "train_capacity",
    2.0,
    "Capacity factor in training: rows of an expert, over tokens per expert.",
    lower_bound=1e-3,
    upper_bound=1e6,
)
_UPDATE = absl_flags.DEFINE_enum(
    "update",
    "all",
    [
        "all",
        "all_but_embeddings",
        "all_but_experts",
        "all_but_router",
        "experts",
        "lora",
    ],
    "Which weights are trained; the others stay as they are in the preset. "
    "lora: adapters alone, which the preset holds merged and adapters.lora.h5 "
    "apart.",
)
_LORA_RANK = absl_flags.DEFINE_integer(
    "lora_rank",
    8,
    "Of the adapters of --update=lora.",
    lower_bound=1,
    upper_bound=1 << 16,
)
_SELECT = absl_flags.DEFINE_string(
    "select",
    "loss",
    "What the best checkpoint is chosen by, on the validation side: loss, or a "
    "metric, which is the mean over the tasks that have it.",
)
_PATIENCE = absl_flags.DEFINE_integer(
    "patience",
    5,
    "Stop after so many evaluations that were no better; 0: never.",
    lower_bound=0,
)
# Layers that --update=lora gives adapters; gated feed-forwards have two `wi`.
_ADAPTED = ("query", "value", "wi", "wi_0", "wi_1", "wo")
absl_flags.register_validator(
    "rate",
    lambda rate: rate is None or 0 < rate < math.inf,
    "must be above 0.",
)


def main() -> None:
    shared = flags.make_workdir()
    workdir = mesh.own_folder(shared)
    import keras

    from keras_switch_train import callbacks, selection

    keras.utils.set_random_seed(flags.SEED.value)
    _check_adapters()
    mesh.start(by_tensorflow=False)

    # Tasks.
    loaded = _load_tasks()
    monitor = selection.check_choice(_SELECT.value, loaded)

    # Model.
    model = _make_model()
    tokenizer = _make_tokenizer(loaded, model.backbone, workdir)

    # Data.
    shape = task_data.shape_of(model)
    batches, held_out, asked = task_data.make_data(loaded, tokenizer, shape)
    trained = _choose_weights(model)
    logging.info("%s", _describe(model, loaded, trained, batches.mixture.rates))

    _compile(model)

    # Callbacks.
    limit = training.make_limit()
    report = callbacks.Report(
        limit, corpus.tokens_per_step(batches), shown=(monitor,)
    )
    log_files = callbacks.files(workdir)
    checkpoint = training.make_checkpoint(mesh.share(batches), shared)
    guards = training.make_guards(model, checkpoint)
    answer = task_data.answerer(model, tokenizer, shape)
    scores, best = selection.make(monitor, asked, answer, _PATIENCE.value)
    called = [*guards, limit, *scores, report, best, *log_files, checkpoint]

    # Fit and save.
    history = training.fit(model, mesh.share(held_out), checkpoint, called)
    training.refuse_divergence(model, history, _RATE)
    training.write_history(history, workdir)
    task_data.save(model, tokenizer, shape, shared)
    if _UPDATE.value == "lora":
        _save_adapters(model, workdir)

    # Measure the best weights, which are in the model now.
    scores = task_data.measure(loaded, answer)
    best = selection.best_of(history, monitor)
    _write_results(scores, best, trained, workdir)


def run() -> None:
    """The console command."""
    flags.run(
        main,
        uses=(
            "backend",
            "batch_size",
            "dtype",
            "input_length",
            "preset",
            "rematerialize",
            "retain_heap",
            "seed",
            "workdir",
            *flags.OF_MESH,
            *task_data.NAMES,
            *task_flags.NAMES,
            *training.NAMES,
        ),
        requires=("workdir",),
        resumes=True,
    )


def _check_adapters():
    """Refuses flags that do not go without adapters."""
    if _LORA_RANK.present and _UPDATE.value != "lora":
        raise flags.UsageError(
            "--lora_rank goes with --update=lora; received "
            f"--update={_UPDATE.value}."
        )


def _load_tasks():
    with mesh.one_after_another("tasks"):
        loaded = task_flags.load()
    task_flags.check_metrics_packages(loaded)
    return loaded


def _make_model():
    task = task_flags.task_class()
    preset, cls = flags.PRESET.value, task.backbone_cls
    with flags.blame("preset"):
        backbone = cls.from_preset(
            preset,
            # Presets with a name carry no weights; a folder's are trained on.
            load_weights=preset not in cls.presets,
            dtype=flags.DTYPE.value,
            rematerialize=flags.REMATERIALIZE.value,
            dropout=_DROPOUT.value,
            expert_dropout=_EXPERT_DROPOUT.value,
            capacity_factor=_TRAIN_CAPACITY.value,
        )
    if preset in cls.presets:
        logging.warning("%s has random weights: pre-train it first", preset)
    training.set_balance_loss(backbone)
    # Batches come tokenized: the preprocessor joins for saving.
    return task(backbone, preprocessor=None)


def _make_tokenizer(loaded, backbone, workdir):
    """The preset's, or one trained on the training sides."""
    from keras_switch import data

    documents = [
        data.Document(f"{task.prompt(example.input)} {example.target}", "task")
        for task, splits in loaded
        for example in splits.train
    ]
    tokenizer = corpus.make_tokenizer(
        documents, backbone.vocabulary_size, workdir, flag="preset"
    )
    if tokenizer.vocabulary_size() > backbone.vocabulary_size:
        raise flags.UsageError(
            "--preset must have a tokenizer of at most "
            f"{backbone.vocabulary_size} ids, the model's; received "
            f"{tokenizer.vocabulary_size()}."
        )
    return tokenizer


def _choose_weights(model):
    """Freezes what `--update` leaves out; returns sizes, for the record.

    Weights one by one, not layers: what a layer is told would be saved.
    """
    weights = model.trainable_weights
    if _UPDATE.value == "lora":
        model.backbone.enable_lora(_LORA_RANK.value, list(_ADAPTED))
    else:
        for weight in weights:
            weight.trainable = _is_updated(weight.path, _UPDATE.value)
    count, total = (
        sum(math.prod(weight.shape) for weight in some)
        for some in (model.trainable_weights, weights)
    )
    if not count:
        raise flags.UsageError(
            f"--update={_UPDATE.value} must leave a weight to train; "
            f"{flags.PRESET.value} has no experts."
        )
    return {"trained": count, "total": total}


def _is_updated(path, update):
    is_expert = "experts/" in path
    return {
        "all": True,
        "all_but_embeddings": not path.startswith("token_embedding/"),
        "all_but_experts": not is_expert,
        "experts": is_expert,
        "all_but_router": "/router/" not in path,
    }[update]


def _compile(model):
    model.compile(
        _make_optimizer(),
        jit_compile=flags.jit_compile(),
        routing_metrics="layers",
    )


def _make_optimizer():
    import keras

    from keras_switch import optimizers

    cls, rate = optimizers.Adafactor, 1e-3
    if _UPDATE.value == "lora":
        # A step relative to the size of a weight that is 0 leads nowhere.
        cls, rate = keras.optimizers.Adam, 1e-2
    rate = _RATE.value or rate
    return cls(rate, global_clipnorm=training.CLIP_NORM.value)


def _describe(model, loaded, trained, rates):
    shares = ", ".join(
        f"{task.name} ({len(splits.train):,} examples, {rate:.0%} of the rows)"
        for (task, splits), rate in zip(loaded, rates, strict=True)
    )
    return (
        f"{flags.PRESET.value}: {trained['total']:,} weights, "
        f"{trained['trained']:,} of them trained, on {shares}"
    )


def _save_adapters(model, workdir):
    from keras_switch import files
    from keras_switch.ops import state

    path = os.path.join(workdir, "adapters.lora.h5")
    adapters = [w for w in model.weights if "/lora_kernel_" in w.path]
    with state.on_host(adapters):
        if state.is_writer():
            with files.atomic_write(path) as file:
                model.backbone.save_lora_weights(str(file))
    logging.info("the adapters alone are in %s", path)


def _write_results(scores, best, trained, workdir):
    from keras_switch import files

    results = {
        "best": best,
        "parameters": trained,
        "tasks": scores,
        "flags": flags.as_dict(),
    }
    path = os.path.join(workdir, "results.json")
    with files.atomic_write(path) as file:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    logging.info("metrics are in %s", path)


if __name__ == "__main__":
    run()
