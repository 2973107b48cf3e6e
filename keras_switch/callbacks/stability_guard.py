"""A callback that keeps a bad step out of the weights."""

import functools
import warnings
from typing import Any

import keras
from keras import ops

from keras_switch.layers.validation import check_choice, check_number
from keras_switch.ops.rematerialize import everything_kept
from keras_switch.ops.state import synchronize

ACTIONS = ("stop", "skip", "roll_back")
# Entries of what the optimizer finds, before those of the variables.
_COUNTS = 3


class StabilityGuard(keras.callbacks.Callback):
    """Keeps a step with NaN or infinity out of the weights, and says where.

    While `fit` runs, the optimizer looks at all gradients of a step. If one is
    not finite, which is also so where the loss is not, the step leaves the
    weights and the optimizer as they were. Then training stops, goes on, or
    goes back to the last checkpoint.

    Looking costs a copy of the weights and the optimizer's state within a
    step, and `fit` compiles its step anew.

    Args:
        action: `"stop"` ends training with an error, `"skip"` warns and goes
            on with the next batch, `"roll_back"` warns and sets the model to
            the newest checkpoint before going on with the next batch.
        checkpoint: The `ResumableCheckpoint` of this training, which
            `"roll_back"` needs. If its data has random access, the bad batch
            is run again to name the layer where the numbers end.
        most: int, how many such steps in a row are borne; one more ends
            training with an error.
        every: int, steps from one look at what the optimizer has found to the
            next, and so how late a warning may be; bad steps have no effect in
            any case. A look on JAX copies the training state back to the
            model.

    Raises:
        ValueError: for a bad argument.
        FloatingPointError: from `fit`, with the step and the variables; for
            `"stop"`, and after too many such steps.

    Example:

    ```python
    guard = keras_switch.StabilityGuard("roll_back", checkpoint)
    model.fit(..., callbacks=[guard, checkpoint])
    ```
    """

    def __init__(
        self,
        action: str = "stop",
        checkpoint: Any = None,
        most: int = 10,
        every: int = 10,
    ) -> None:
        super().__init__()
        check_choice("action", action, ACTIONS)
        most = check_number("most", most, whole=True, at_least=0)
        every = check_number("every", every, whole=True, at_least=1)
        if action == "roll_back" and checkpoint is None:
            raise ValueError(
                'checkpoint must be given for action="roll_back"; received '
                "checkpoint=None."
            )
        self.action = action
        self.checkpoint = checkpoint
        self.most = most
        self.every = every
        self._found: Any = None

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Here, so that a checkpoint finds the variable when training begins.
        self._found = _found_of(model)

    def on_train_begin(self, logs: Any = None) -> None:
        self._step = 0
        optimizer = self.model.optimizer
        # Still there if an earlier `fit` ended by an error.
        vars(optimizer).pop("apply", None)
        optimizer.apply = functools.partial(
            _apply_if_finite, optimizer, optimizer.apply, self._found
        )
        # An earlier `fit` may have compiled a step that does not look.
        self.model.make_train_function(force=True)
        self._bad = int(self._read()[0])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        steps = self.model.steps_per_execution
        self._step += steps
        if (self._step // steps) % self.every == 0:
            self._look()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._look()

    def on_train_end(self, logs: Any = None) -> None:
        del self.model.optimizer.apply
        self.model.make_train_function(force=True)

    def get_state(self) -> dict[str, Any]:
        """What a resumed training needs, for `ResumableCheckpoint`."""
        return {"step": self._step, "bad": self._bad}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes back what `get_state` returned."""
        self._step, self._bad = state["step"], state["bad"]

    def _look(self):
        synchronize(self.model)
        found = self._read()
        before, self._bad = self._bad, int(found[0])
        if self._bad <= before:
            return
        message = self._describe(found)
        if self.action == "stop" or int(found[1]) > self.most:
            raise FloatingPointError(message)
        warnings.warn(message, stacklevel=2)
        if self.action == "roll_back":
            self.checkpoint.restore_newest()
            self._bad = int(self._read()[0])

    def _read(self):
        return keras.ops.convert_to_numpy(self._found)

    def _describe(self, found):
        variables = self.model.trainable_variables
        flags = found[_COUNTS:]
        bad = [v.path for v, flag in zip(variables, flags, strict=True) if flag]
        step = self._step - int(found[2])
        return (
            f"NaN or infinity in step {step}: in the gradients of {len(bad)} "
            f"of {len(variables)} variables, the first is {bad[0]}; "
            f"{self._origin(step)}The step has left no trace in the weights. "
            "Try a lower learning rate, a longer warm-up, or "
            "global_clipnorm=1.0 in the optimizer; a router's logits are kept "
            "small by its z-loss."
        )

    def _origin(self, step):
        """Where the numbers end in the forward pass."""
        if self.checkpoint is None:
            return ""
        batch = self.checkpoint.batch(step - 1)
        if batch is None:
            return ""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        layer = first_non_finite_layer(self.model, x)
        if layer is None:
            return "run again, all layers' outputs are finite. "
        return f"run again, the first layer without numbers is {layer}. "


def first_non_finite_layer(model: keras.Model, x: Any) -> str | None:
    """The path of the first layer that returns NaN or infinity.

    The model is called in training, layer by layer; its state stays as it is.

    Args:
        model: A built model.
        x: Its inputs.

    Returns:
        The innermost layer that is the first to do so; `None`: no layer does.
    """
    found: list[str] = []

    def watched(layer, call):
        def watch(*args, **kwargs):
            outputs = call(*args, **kwargs)
            if not found and not _is_finite(outputs):
                found.append(layer.path or layer.name)
            return outputs

        return watch

    layers = [layer for layer in model._flatten_layers() if layer is not model]
    for layer in layers:
        object.__setattr__(layer, "call", watched(layer, layer.call))
    try:
        with keras.StatelessScope(), everything_kept():
            model(x, training=True)
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
    return found[0] if found else None


def _is_finite(outputs):
    return all(
        bool(ops.all(ops.isfinite(tensor)))
        for tensor in keras.tree.flatten(outputs)
        if ops.is_tensor(tensor)
    )


def _found_of(model):
    """What the optimizer found: bad steps, those of them in a row, good steps
    since the last, and 1 for each variable whose gradient was bad in that."""
    optimizer = model.optimizer
    if not model.built:
        raise ValueError("StabilityGuard needs a built model.")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "StabilityGuard needs an optimizer without a loss scale; "
            "LossScaleOptimizer skips steps that are not finite by itself."
        )
    if not hasattr(optimizer, "found_non_finite"):
        optimizer.found_non_finite = optimizer.add_variable(
            (_COUNTS + len(model.trainable_variables),),
            "zeros",
            dtype="int32",
            name="found_non_finite",
        )
        _leave_out_of_files(optimizer, optimizer.found_non_finite)
    return optimizer.found_non_finite


def _leave_out_of_files(optimizer, found):
    """A model that is loaded has an optimizer without it, into which Keras
    would then load nothing at all."""
    load = optimizer.load_own_variables

    def own():
        return [v for v in optimizer.variables if v is not found]

    def save_own_variables(store):
        for i, variable in enumerate(own()):
            store[str(i)] = variable.numpy()

    def load_own_variables(store):
        if len(store.keys()) != len(own()):
            return load(store)  # says what is wrong
        for i, variable in enumerate(own()):
            variable.assign(store[str(i)])

    optimizer.save_own_variables = save_own_variables
    optimizer.load_own_variables = load_own_variables


def _has_numbers(gradient):
    # A weight that no loss depends on has none, but on JAX.
    if gradient is None:
        return ops.convert_to_tensor(True)
    return ops.all(ops.isfinite(ops.convert_to_tensor(gradient)))


def _apply_if_finite(optimizer, apply, found, grads, trainable_variables=None):
    """`Optimizer.apply`, without any effect of gradients that are not finite.

    Not a condition round `apply`: it would have to be one that every backend
    can compile, with all of the state passed through.
    """
    finite = ops.stack([_has_numbers(g) for g in grads])  # [variables]
    fine = ops.all(finite)
    kept = [
        *(v for v in optimizer.variables if v is not found),
        *(trainable_variables or optimizer._trainable_variables),
    ]
    before = [ops.copy(variable) for variable in kept]
    apply(grads, trainable_variables)
    for variable, value in zip(kept, before, strict=True):
        now = ops.convert_to_tensor(variable)
        variable.assign(_where(fine, now, value))
    good = ops.cast(fine, "int32")
    counts = ops.convert_to_tensor(found)
    parts = (
        counts[:1] + 1 - good,
        (counts[1:2] + 1) * (1 - good),
        (counts[2:3] + 1) * good,
        _where(fine, counts[_COUNTS:], 1 - ops.cast(finite, "int32")),
    )
    found.assign(ops.concatenate(parts))


def _where(condition, one, other):
    """By a scalar, with as many axes as the others: on one without, DTensor
    ends the process."""
    ones = (1,) * len(one.shape)
    return ops.where(ops.reshape(condition, ones), one, other)
