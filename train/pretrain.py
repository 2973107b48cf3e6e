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
    --preset=switch_causal_mini --objective=next_token      a decoder alone
    --corpus='books/**/*.txt'     text of your own
    --mesh=batch:4,model:2        over 8 devices; see docs/sharding.md
    --flagfile=my.flags           flags from a file, one on a line
"""

import math
import os

import numpy as np
from absl import flags as absl_flags
from absl import logging

from keras_switch_train import blanks, corpus, flags, mesh, training

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
_SAMPLES = absl_flags.DEFINE_integer(
    "samples", 4, "Held-out texts to fill blanks in.", lower_bound=0
)


absl_flags.register_validator(
    "learning_rate", lambda rate: 0 < rate < math.inf, "must be above 0."
)


def main() -> None:
    shared = flags.make_workdir()
    workdir = mesh.own_folder(shared)
    import keras

    from keras_switch_train import callbacks

    keras.utils.set_random_seed(flags.SEED.value)
    mesh.start()

    backbone = _make_backbone()

    # Data.
    with mesh.one_after_another("data"):
        documents = corpus.load()
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
    limit = training.make_limit()
    report = callbacks.Report(limit, corpus.tokens_per_step(pipeline))
    log_files = callbacks.files(workdir)
    checkpoint = training.make_checkpoint(mesh.share(pipeline), shared)
    guards = training.make_guards(model, checkpoint)
    called = [*guards, limit, report, *log_files, checkpoint]

    # Fit and save.
    history = training.fit(model, mesh.share(held_out), checkpoint, called)
    training.refuse_divergence(model, history, _LEARNING_RATE)
    corpus.save(model, tokenizer, pipeline, shared)
    training.write_history(history, workdir)
    if flags.NUM_PROCESSES.value == 1:
        with mesh.eager():
            _show_samples(documents.held_out, workdir)
            _show_routing(held_out, tokenizer, workdir)


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
            "rematerialize",
            "retain_heap",
            "seed",
            "workdir",
            *flags.OF_MESH,
            *training.NAMES,
        ),
        requires=("workdir",),
        resumes=True,
    )


def _make_backbone():
    preset, cls = flags.PRESET.value, _task().backbone_cls
    with flags.blame("preset"):
        return cls.from_preset(
            preset,
            # Presets with a name carry no weights; a folder's are trained on.
            load_weights=preset not in cls.presets,
            dtype=flags.DTYPE.value,
            rematerialize=flags.REMATERIALIZE.value,
        )


def _task():
    """The class of the model: the objective says whether it has an encoder."""
    from keras_switch import models

    if flags.OBJECTIVE.value == "next_token":
        return models.SwitchCausalLM
    return models.SwitchSeq2SeqLM


def _make_model(backbone):
    training.set_balance_loss(backbone)
    # Batches come tokenized: the preprocessor joins for saving.
    return _task()(backbone, preprocessor=None)


def _make_optimizer():
    from keras_switch import optimizers, schedules

    warmup = _WARMUP_STEPS.value
    return optimizers.Adafactor(
        schedules.InverseSquareRoot(_LEARNING_RATE.value * warmup**0.5, warmup),
        global_clipnorm=training.CLIP_NORM.value,
    )


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


def _show_routing(held_out, tokenizer, workdir):
    from keras_switch import analysis
    from keras_switch_train import report

    backbone = _task().backbone_cls.from_preset(
        os.path.join(workdir, "preset"), dtype=flags.DTYPE.value
    )
    if analysis.sparse_layers(backbone):
        report.write(backbone, held_out, tokenizer, workdir)
    logging.info("plots and tables are in %s", workdir)


if __name__ == "__main__":
    run()
