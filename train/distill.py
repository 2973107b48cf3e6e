r"""Distils a sparse teacher into a dense student.

    python train/distill.py --teacher=runs/switch_mini/preset \
        --preset=t5_mini --workdir=runs/student

trains for five minutes on the demo corpus, with 0.75 of the loss on the text
and 0.25 on what the teacher thinks of it, from the teacher's weights outside
its experts, as the Switch paper does (section 4.2). With --task it does so on
tasks, for a teacher that was fine-tuned on them:

    python train/distill.py --teacher=runs/section/preset \
        --task=debian_section --workdir=runs/section_small

Killed, or told to stop by SIGTERM or Ctrl-C, the same command goes on where it
was; told to stop, it exits with code 75.

The work directory then holds:

    preset/         the student with the teacher's tokenizer
    results.json    the teacher's and the student's losses on held-out text,
                    their sizes, metrics of tasks
    history.csv     losses and rates, a row an evaluation; hard_loss is that on
                    the text alone
    history.json    the same, with the flags of this run
    checkpoints/    where the same command goes on; remove it to begin anew

More:

    --preset=runs/small/preset    a student that was trained before
    --noinitialize                a student that starts from its own weights
    --hard_weight=0               the teacher's opinion alone
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

_TEACHER = absl_flags.DEFINE_string(
    "teacher", None, "A folder with the preset of the teacher."
)
_HARD_WEIGHT = absl_flags.DEFINE_float(
    "hard_weight",
    0.75,
    "Share of the loss that is on the targets; the rest is on the teacher's "
    "probabilities.",
    lower_bound=0,
    upper_bound=1,
)
_TEMPERATURE = absl_flags.DEFINE_float(
    "distill_temperature",
    1.0,
    "Divides the logits of both in the teacher's part of the loss.",
    lower_bound=1e-3,
)
_INITIALIZE = absl_flags.DEFINE_bool(
    "initialize",
    True,
    "Whether the student starts from the teacher's weights outside its "
    "experts, as far as they fit.",
)
_RATE = absl_flags.DEFINE_float(
    "student_rate",
    None,
    "Learning rate, relative to the size of each weight (Adafactor). Default: "
    "0.05, falling after 500 steps, on a corpus; a constant 0.001 on tasks.",
    lower_bound=1e-9,
)
_HELD_OUT = absl_flags.DEFINE_integer(
    "held_out_batches", 8, "Of an evaluation on a corpus.", lower_bound=1
)


def main() -> None:
    shared = flags.make_workdir()
    workdir = mesh.own_folder(shared)
    import keras

    import keras_switch
    from keras_switch_train import callbacks

    keras.utils.set_random_seed(flags.SEED.value)
    mesh.start(by_tensorflow=False)
    mesh.check_batch_size()

    # Models.
    teacher = _load_teacher()
    tokenizer = teacher.preprocessor.tokenizer
    teacher.preprocessor = None  # batches come tokenized
    student = _make_student(teacher)

    # Data.
    with mesh.one_after_another("data"):
        batches, held_out, loaded = _make_data(student, tokenizer, workdir)

    # Compile.
    distiller = keras_switch.Distiller(
        teacher, student, _HARD_WEIGHT.value, _TEMPERATURE.value
    )
    distiller.compile(_make_optimizer(), jit_compile=flags.jit_compile())
    distiller.build(_shapes(batches))
    logging.info("%s", _describe(teacher, student))

    # Callbacks.
    limit = training.make_limit()
    report = callbacks.Report(
        limit, corpus.tokens_per_step(batches), shown=("val_hard_loss",)
    )
    checkpoint = training.make_checkpoint(mesh.share(batches), shared)
    guards = training.make_guards(student, checkpoint)
    called = [*guards, limit, report, *callbacks.files(workdir), checkpoint]

    # Fit, save, measure.
    shares = mesh.share(held_out)
    history = training.fit(distiller, shares, checkpoint, called)
    training.refuse_divergence(distiller, history, _RATE)
    training.write_history(history, workdir)
    _save(student, tokenizer, batches, shared)
    losses = _losses(teacher, student, shares)
    _write_results(losses, teacher, student, tokenizer, loaded, workdir)


def run() -> None:
    """The console command."""
    absl_flags.set_default(flags.PRESET, "t5_mini")
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
            *flags.OF_MESH,
            *task_data.NAMES,
            *task_flags.NAMES,
            *training.NAMES,
        ),
        requires=("teacher", "workdir"),
        resumes=True,
    )


def _load_teacher():
    from keras_switch.models.presets import find_preset

    with flags.blame("teacher"):
        folder = find_preset(_TEACHER.value).folder
        teacher = task_flags.task_class(folder).from_preset(
            folder, dtype=flags.DTYPE.value
        )
        if teacher.preprocessor is None:
            raise ValueError("the preset must have a tokenizer.")
    return teacher


def _make_student(teacher):
    import keras_switch

    cls, preset = type(teacher), flags.PRESET.value
    with flags.blame("preset"):
        backbone = cls.backbone_cls.from_preset(
            preset,
            # Presets with a name carry no weights; a folder's are trained on.
            load_weights=preset not in cls.backbone_cls.presets,
            dtype=flags.DTYPE.value,
        )
        if backbone.vocabulary_size != teacher.backbone.vocabulary_size:
            raise ValueError(
                "the student must have the teacher's vocabulary_size, "
                f"{teacher.backbone.vocabulary_size}; received "
                f"{backbone.vocabulary_size}."
            )
        student = cls(backbone, preprocessor=None)
        if _INITIALIZE.value:
            copied = keras_switch.initialize_from_teacher(student, teacher)
            logging.info(
                "%d of %d weights are the teacher's",
                *(len(copied), len(backbone.weights)),
            )
    training.set_balance_loss(backbone)
    return student


def _make_data(student, tokenizer, workdir):
    """Batches, the held-out set, and tasks: none where there is a corpus."""
    if task_flags.TASK.value:
        loaded = task_flags.load()
        task_flags.check_metrics_packages(loaded)
        shape = task_data.shape_of(student)
        return *task_data.make_data(loaded, tokenizer, shape)[:2], loaded
    corpus.write_vocabulary(tokenizer, workdir)
    documents = corpus.load()
    batches = corpus.make_pipeline(documents.train, tokenizer, workdir)
    held_out = corpus.make_held_out(
        documents.held_out, tokenizer, _HELD_OUT.value, workdir
    )
    return batches, held_out, []


def _make_optimizer():
    from keras_switch import optimizers, schedules

    rate = _RATE.value
    if task_flags.TASK.value:
        rate = rate or 1e-3
    else:
        # As pretrain, to which a student alone is compared.
        peak, warmup = rate or 0.05, 500
        rate = schedules.InverseSquareRoot(peak * warmup**0.5, warmup)
    return optimizers.Adafactor(rate, global_clipnorm=training.CLIP_NORM.value)


def _shapes(batches):
    return {name: array.shape for name, array in batches.batch(0)[0].items()}


def _describe(teacher, student):
    from keras_switch.parameters import count_parameters

    sizes = [
        f"{count_parameters(model.backbone)['total']:,} parameters"
        for model in (teacher, student)
    ]
    return f"teacher: {sizes[0]}; student: {sizes[1]}"


def _save(student, tokenizer, batches, workdir):
    if task_flags.TASK.value:
        shape = task_data.shape_of(student)
        task_data.save(student, tokenizer, shape, workdir)
        return
    corpus.save(student, tokenizer, batches, workdir)
    student.preprocessor = None


def _losses(teacher, student, held_out):
    """Cross-entropy of a target of held-out text, over all of them."""
    import keras

    found = {}
    for name, model in (("teacher", teacher), ("student", student)):
        entropy = keras.metrics.SparseCategoricalCrossentropy(
            name="entropy", from_logits=True
        )
        model.compile(
            "sgd", weighted_metrics=[entropy], jit_compile=flags.jit_compile()
        )
        logs = model.evaluate(held_out.dataset(), verbose=0, return_dict=True)
        found[name] = float(logs["entropy"])
    return found


def _write_results(losses, teacher, student, tokenizer, loaded, workdir):
    from keras_switch import files
    from keras_switch.parameters import count_parameters

    results = {
        "held_out_loss": losses,
        "parameters": {
            name: count_parameters(model.backbone)["total"]
            for name, model in (("teacher", teacher), ("student", student))
        },
        "flags": flags.as_dict(),
    }
    if loaded:
        shape = task_data.shape_of(student)
        results["tasks"] = {
            name: task_data.measure(
                loaded, task_data.answerer(model, tokenizer, shape)
            )
            for name, model in (("teacher", teacher), ("student", student))
        }
    path = os.path.join(workdir, "results.json")
    with files.atomic_write(path) as file:
        file.write_text(json.dumps(results, indent=1), encoding="utf-8")
    for name, loss in losses.items():
        logging.info("%s: held-out loss %.4f", name, loss)
    if not all(map(math.isfinite, losses.values())):
        raise flags.UsageError("--teacher must give finite losses.")


if __name__ == "__main__":
    run()
