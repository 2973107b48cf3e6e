"""What `pretrain` and `finetune` share: when they stop, what guards them."""

import json
import math
import os
from typing import Any

from absl import flags as absl_flags

from keras_switch_train import flags

MINUTES = absl_flags.DEFINE_float(
    "minutes", 5.0, "Budget of wall-clock time; 0: no limit.", lower_bound=0
)
STEPS = absl_flags.DEFINE_integer(
    "steps", 0, "Stop after so many steps; 0: no limit.", lower_bound=0
)
EVAL_EVERY = absl_flags.DEFINE_integer(
    "eval_every", 100, "Steps between evaluations.", lower_bound=1
)
BALANCE_LOSS = absl_flags.DEFINE_float(
    "balance_loss",
    None,
    "Weight of the load-balancing loss of all routers. Default: the preset's, "
    "which is the paper's 0.01.",
    lower_bound=0,
)
CLIP_NORM = absl_flags.DEFINE_float(
    "clip_norm",
    None,
    "Longest gradient of a step, over all weights; longer ones are shortened. "
    "Default: no limit, as Adafactor clips the update of each weight.",
    lower_bound=1e-9,
)
ON_NAN = absl_flags.DEFINE_enum(
    "on_nan",
    "stop",
    ["stop", "skip", "roll_back"],
    "What to do after a step with NaN or infinity, which never reaches the "
    "weights: stop, go on with the next batch, or go back to the last "
    "checkpoint and on with the next batch. (With --dtype=mixed_float16 the "
    "loss scale skips such steps.)",
)
SAVE_EVERY = absl_flags.DEFINE_integer(
    "save_every", 200, "Steps between checkpoints.", lower_bound=1
)
# For `uses` of a binary that trains.
NAMES = (
    "balance_loss",
    "clip_norm",
    "eval_every",
    "minutes",
    "on_nan",
    "save_every",
    "steps",
)

absl_flags.register_validator("minutes", math.isfinite, "must be finite.")
absl_flags.register_validator(
    "balance_loss",
    lambda weight: weight is None or math.isfinite(weight),
    "must be finite.",
)
absl_flags.register_multi_flags_validator(
    ["minutes", "num_processes"],
    # Their clocks would stop them before different steps.
    lambda values: not values["minutes"] or values["num_processes"] == 1,
    "--minutes must be 0 with --num_processes; give --steps.",
)
absl_flags.register_multi_flags_validator(
    ["minutes", "steps"],
    lambda values: values["minutes"] or values["steps"],
    "--minutes or --steps must be above 0.",
)


# `fit` wants a number of epochs; the callback ends it.
_MANY = 10**6


def make_limit() -> Any:
    """Ends training as `--minutes` and `--steps` say."""
    from keras_switch_train import callbacks

    return callbacks.StopAfter(MINUTES.value or None, STEPS.value or None)


def make_checkpoint(pipeline: Any, workdir: str) -> Any:
    """A `ResumableCheckpoint` in the work directory.

    Args:
        pipeline: What is trained on.
        workdir: As `--workdir`.
    """
    from keras_switch import resume

    return resume.ResumableCheckpoint(
        os.path.join(workdir, "checkpoints"),
        data=pipeline,
        save_every=SAVE_EVERY.value,
    )


def make_guards(model: Any, checkpoint: Any) -> list:
    """Callbacks that watch over numbers and routers; they come first."""
    import keras

    from keras_switch import analysis, callbacks

    guards = []
    if flags.DTYPE.value == "mixed_float16":
        guards.append(keras.callbacks.TerminateOnNaN())
    else:
        guards.append(callbacks.StabilityGuard(ON_NAN.value, checkpoint))
    if analysis.sparse_layers(model.backbone):
        guards.append(callbacks.RoutingAlarm())
    return guards


def set_balance_loss(backbone: Any) -> None:
    """Gives all routers the weight that `--balance_loss` says, if it does."""
    from keras_switch import analysis

    if BALANCE_LOSS.value is not None:
        for layer in analysis.sparse_layers(backbone).values():
            layer.router.load_balancing_loss_weight = BALANCE_LOSS.value


def fit(
    model: Any, held_out: Any, checkpoint: Any, callbacks: list
) -> dict[str, list]:
    """Trains, or goes on; a run begun with other flags is refused.

    Args:
        model: Compiled.
        held_out: Has `dataset()`, for validation.
        checkpoint: From `make_checkpoint`.
        callbacks: All of them, in their order.

    Returns:
        The history.

    Raises:
        UsageError: if the checkpoints are of another run, or training
            diverged.
    """
    from keras_switch import files

    try:
        return model.fit(
            checkpoint.dataset(),
            steps_per_epoch=EVAL_EVERY.value,
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


def refuse_divergence(
    model: Any, history: dict[str, list], rate: absl_flags.FlagHolder
) -> None:
    """Nothing is saved of a model that has lost its numbers.

    Args:
        model: After training.
        history: From `fit`.
        rate: The flag of the learning rate.

    Raises:
        UsageError: if the loss or a weight is not finite.
    """
    from keras import ops

    loss = history["loss"][-1]
    # One by one: processes that share a mesh must not run ahead of each other.
    weights = model.trainable_variables
    finite = all(bool(ops.all(ops.isfinite(w))) for w in weights)
    if not (math.isfinite(loss) and finite):
        raise flags.UsageError(
            f"training diverged within {history['step'][-1]} steps, loss "
            f"{loss:.4g}; nothing is saved. Try a lower --{rate.name}."
        )


def write_history(history: dict[str, list], workdir: str) -> None:
    """Writes `history.json`, with the flags of the run, and plots of it.

    Args:
        history: From `fit`.
        workdir: As `--workdir`.
    """
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
