r"""Pre-trains a Switch Transformer on text.

    python train/pretrain.py --preset=switch_mini --workdir=runs/switch_mini

trains on the demo corpus for five minutes, prints the loss on held-out
documents as it falls, saves a preset, fills in blanks in held-out text with it
and draws plots. On two cores expect the held-out loss to fall by several nats;
five minutes teach frequent words, not knowledge.

Killed, or told to stop by SIGTERM or Ctrl-C, the same command goes on where it
was; told to stop, it exits with code 75. docs/resume.md says what is promised.

The work directory then holds:

    preset/         the model with its tokenizer; --preset of the other binaries
    vocabulary.spm  the SentencePiece vocabulary
    history.csv     losses, rates and routing statistics, a row an interval
    history.json    the same, with the flags of this run
    samples.txt     blanks that were filled in
    routing.json    load, drop, entropy and specialisation of every router
    *.png           plots of all these
    tensorboard/    event files, if TensorBoard is installed
    checkpoints/    where the same command goes on; remove it to begin anew

More:

    --minutes=0 --steps=2000      so many steps, however long they take
    --balance_loss=0              what becomes of routing without it
    --preset=t5_mini              the dense twin, the same FLOPs for each token
    --corpus='books/**/*.txt'     text of your own
    --flagfile=my.flags           flags from a file, one on a line
"""

import json
import math
import os

import numpy as np
from absl import flags as absl_flags
from absl import logging

from keras_switch_train import blanks, corpus, flags

_MINUTES = absl_flags.DEFINE_float(
    "minutes", 5.0, "Budget of wall-clock time; 0: no limit.", lower_bound=0
)
_STEPS = absl_flags.DEFINE_integer(
    "steps", 0, "Stop after so many steps; 0: no limit.", lower_bound=0
)
_EVAL_EVERY = absl_flags.DEFINE_integer(
    "eval_every", 100, "Steps between evaluations.", lower_bound=1
)
_EVAL_BATCHES = absl_flags.DEFINE_integer(
    "eval_batches", 8, "Held-out batches of an evaluation.", lower_bound=1
)
_LEARNING_RATE = absl_flags.DEFINE_float(
    "learning_rate",
    0.05,
    "Peak rate, relative to the size of each weight (Adafactor). It is kept "
    "during the warm-up, then falls with the square root of the step.",
)
_WARMUP_STEPS = absl_flags.DEFINE_integer(
    "warmup_steps", 500, "Steps until the rate begins to fall.", lower_bound=1
)
_BALANCE_LOSS = absl_flags.DEFINE_float(
    "balance_loss",
    None,
    "Weight of the load-balancing loss of all routers. Default: the preset's, "
    "which is the paper's 0.01.",
    lower_bound=0,
)
_CLIP_NORM = absl_flags.DEFINE_float(
    "clip_norm",
    None,
    "Longest gradient of a step, over all weights; longer ones are shortened. "
    "Default: no limit, as Adafactor clips the update of each weight.",
    lower_bound=1e-9,
)
_ON_NAN = absl_flags.DEFINE_enum(
    "on_nan",
    "stop",
    ["stop", "skip", "roll_back"],
    "What to do after a step with NaN or infinity, which never reaches the "
    "weights: stop, go on with the next batch, or go back to the last "
    "checkpoint and on with the next batch. (With --dtype=mixed_float16 the "
    "loss scale skips such steps.)",
)
_SAVE_EVERY = absl_flags.DEFINE_integer(
    "save_every", 200, "Steps between checkpoints.", lower_bound=1
)
_SAMPLES = absl_flags.DEFINE_integer(
    "samples", 4, "Held-out texts to fill blanks in.", lower_bound=0
)


absl_flags.register_validator("minutes", math.isfinite, "must be finite.")
absl_flags.register_validator(
    "learning_rate", lambda rate: 0 < rate < math.inf, "must be above 0."
)
absl_flags.register_validator(
    "balance_loss",
    lambda weight: weight is None or math.isfinite(weight),
    "must be finite.",
)
absl_flags.register_multi_flags_validator(
    ["minutes", "steps"],
    lambda values: values["minutes"] or values["steps"],
    "--minutes or --steps must be above 0.",
)


def main() -> None:
    workdir = flags.make_workdir()
    import keras

    from keras_switch_train import callbacks

    keras.utils.set_random_seed(flags.SEED.value)

    # Data.
    documents = corpus.load()
    backbone = _make_backbone()
    tokenizer = corpus.make_tokenizer(
        documents.train, backbone.vocabulary_size, workdir
    )
    pipeline = corpus.make_pipeline(documents.train, tokenizer, workdir)
    held_out = corpus.make_held_out(
        documents.held_out, tokenizer, _EVAL_BATCHES.value, workdir
    )

    # Model.
    model = _make_model(backbone)
    logging.info("%s", _describe(model, pipeline, documents))

    # Compile.
    model.compile(
        _make_optimizer(),
        jit_compile=flags.jit_compile(),
        routing_metrics="layers",
    )

    # Callbacks.
    limit = callbacks.StopAfter(_MINUTES.value or None, _STEPS.value or None)
    report = callbacks.Report(limit, corpus.tokens_per_step(pipeline))
    log_files = callbacks.files(workdir)
    checkpoint = _make_checkpoint(pipeline, workdir)

    guards = _make_guards(model, checkpoint)

    # Fit and save.
    history = _fit(
        model,
        held_out,
        checkpoint,
        [*guards, limit, report, *log_files, checkpoint],
    )
    _refuse_divergence(model, history)
    _save(model, tokenizer, pipeline, workdir)
    _write_history(history, workdir)
    _show_samples(documents.held_out, workdir)
    _show_routing(model.backbone, held_out, tokenizer, workdir)


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
        requires=("workdir",),
        resumes=True,
    )


# `fit` wants a number of epochs; the callback ends it.
_MANY = 10**6


def _make_backbone():
    from keras_switch import models

    preset = flags.PRESET.value
    with flags.blame("preset"):
        backbone = models.SwitchBackbone.from_preset(
            preset,
            # Presets with a name carry no weights; a folder's are trained on.
            load_weights=preset not in models.SwitchBackbone.presets,
            dtype=flags.DTYPE.value,
        )
    return backbone


def _make_model(backbone):
    from keras_switch import analysis, models

    if _BALANCE_LOSS.value is not None:
        for layer in analysis.sparse_layers(backbone).values():
            layer.router.load_balancing_loss_weight = _BALANCE_LOSS.value
    # Batches come tokenized: the preprocessor joins for saving.
    return models.SwitchSeq2SeqLM(backbone, preprocessor=None)


def _make_optimizer():
    from keras_switch import optimizers, schedules

    warmup = _WARMUP_STEPS.value
    return optimizers.Adafactor(
        schedules.InverseSquareRoot(_LEARNING_RATE.value * warmup**0.5, warmup),
        global_clipnorm=_CLIP_NORM.value,
    )


def _make_checkpoint(pipeline, workdir):
    from keras_switch import resume

    return resume.ResumableCheckpoint(
        os.path.join(workdir, "checkpoints"),
        data=pipeline,
        save_every=_SAVE_EVERY.value,
    )


def _make_guards(model, checkpoint):
    import keras

    from keras_switch import analysis, callbacks

    guards = []
    if flags.DTYPE.value == "mixed_float16":
        guards.append(keras.callbacks.TerminateOnNaN())
    else:
        guards.append(callbacks.StabilityGuard(_ON_NAN.value, checkpoint))
    if analysis.sparse_layers(model.backbone):
        guards.append(callbacks.RoutingAlarm())
    return guards


def _fit(model, held_out, checkpoint, callbacks):
    """Trains, or goes on; a run begun with other flags is refused."""
    from keras_switch import files

    try:
        return model.fit(
            checkpoint.dataset(),
            steps_per_epoch=_EVAL_EVERY.value,
            epochs=_MANY,
            validation_data=held_out.dataset(),
            callbacks=callbacks,
            shuffle=False,  # the pipeline does
            verbose=0,
        ).history
    except files.CheckpointError as error:
        raise flags.UsageError(f"--workdir: {error}") from error
    except FloatingPointError as error:
        raise flags.UsageError(
            f"training diverged within {checkpoint.step} steps; nothing more "
            f"is saved. {error}"
        ) from error


def _describe(model, pipeline, documents):
    from keras_switch.parameters import count_parameters

    count = count_parameters(model.backbone)
    return (
        f"{flags.PRESET.value}: {count['total']:,} parameters, "
        f"{count['active']:,} of them active for a token; "
        f"{len(documents.train):,} documents to train on, "
        f"{len(documents.held_out):,} held out; batches of "
        f"{pipeline.batch_size} x {pipeline.input_length} tokens in, "
        f"{pipeline.target_length} out"
    )


def _refuse_divergence(model, history):
    """Nothing is saved of a model that has lost its numbers."""
    from keras import ops

    loss = history["loss"][-1]
    weights = [ops.all(ops.isfinite(w)) for w in model.trainable_variables]
    if not (math.isfinite(loss) and all(weights)):
        raise flags.UsageError(
            f"training diverged within {history['step'][-1]} steps, loss "
            f"{loss:.4g}; nothing is saved. Try less than "
            f"--learning_rate={_LEARNING_RATE.value}."
        )


def _save(model, tokenizer, pipeline, workdir):
    from keras_switch import models

    model.preprocessor = models.SwitchSeq2SeqLMPreprocessor(
        tokenizer,
        encoder_sequence_length=pipeline.input_length,
        decoder_sequence_length=pipeline.target_length,
    )
    model.save_to_preset(os.path.join(workdir, "preset"))
    logging.info("saved %s", os.path.join(workdir, "preset"))


def _write_history(history, workdir):
    from keras_switch import files, plots

    history = {
        name: [float(value) for value in values]
        for name, values in history.items()
    }
    content = {"flags": flags.as_dict(), "history": history}
    with files.atomic_write(os.path.join(workdir, "history.json")) as file:
        file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    steps = history["step"]
    plots.plot_history(history, os.path.join(workdir, "loss.png"), steps)
    for statistic in ("dropped_fraction", "max_mean_load", "router_entropy"):
        if any(name.endswith(f"/{statistic}") for name in history):
            path = os.path.join(workdir, f"{statistic}.png")
            plots.plot_routing_history(history, statistic, path, steps)


def _show_samples(documents, workdir):
    """Fills in blanks with the preset as saved, not the model in memory."""
    from keras_switch import files, models

    if flags.OBJECTIVE.value != "span_corruption" or not _SAMPLES.value:
        return
    lm = models.SwitchSeq2SeqLM.from_preset(
        os.path.join(workdir, "preset"), dtype=flags.DTYPE.value
    )
    lm.compile(sampler="greedy", jit_compile=flags.jit_compile())
    rng = np.random.default_rng(flags.SEED.value)
    # About as long as the rows it was trained on.
    words = flags.INPUT_LENGTH.value // 2
    texts = [document.text.split() for document in documents]
    texts = [" ".join(text[:words]) for text in texts if len(text) >= words]
    texts = rng.permutation(texts)[: _SAMPLES.value].tolist()
    if not texts:
        return
    # Three blanks, or as many as short texts have room for.
    count = min(3, (words - 1) // 2)
    samples = [blanks.blank_out(text, rng, blanks=count) for text in texts]
    prompts = [sample.prompt for sample in samples]
    answers = lm.generate(prompts, truncate=True)
    text = "\n\n".join(
        blanks.describe(*pair) for pair in zip(samples, answers, strict=True)
    )
    with files.atomic_write(os.path.join(workdir, "samples.txt")) as file:
        file.write_text(text + "\n", encoding="utf-8")
    print(f"\nBlanks in held-out text, filled in:\n\n{text}\n")


def _show_routing(backbone, held_out, tokenizer, workdir):
    from keras_switch import analysis
    from keras_switch_train import report

    if analysis.sparse_layers(backbone):
        report.write(backbone, held_out, tokenizer, workdir)
    logging.info("plots and tables are in %s", workdir)


if __name__ == "__main__":
    run()
