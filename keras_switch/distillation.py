"""Distillation: a sparse teacher's knowledge in a dense student."""

from typing import Any

import keras
from keras import ops

from keras_switch.layers.validation import check_number
from keras_switch.ops.state import assign, fetched


class Distiller(keras.Model):
    """Trains a student on the targets and on what a teacher thinks of them.

    The loss is `hard_weight` times the student's own, and the rest times the
    cross-entropy to the teacher's probabilities (the soft loss). What layers
    of the student add by `add_loss`, such as a router's losses, is added in
    full; sample weights count in both. The teacher is run as in evaluation and
    is not trained: its weights are frozen when it is handed in.

    Compile and fit it like any model, then go on with `student`: a distiller
    itself is not saved. Both models get the same `x`, so they share a
    tokenizer. `fit` and `evaluate` take strings as the student's own do, in
    memory or in a `tf.data.Dataset`, and pack them by its preprocessor; other
    datasets must be mapped by it.

    Args:
        teacher: A model from `x` to logits `[..., V]`.
        student: A model of the same inputs and outputs.
        hard_weight: float in `[0, 1]`, share of the loss on the targets; the
            paper's is 0.75. With 0 targets still count for metrics.
        temperature: float above 0: both logits are divided by it in the soft
            loss, which is multiplied by its square to keep its gradients'
            size. The paper's is 1.
        **kwargs: `name`, and `dtype`, by default the student's.

    Raises:
        ValueError: for an argument out of range, models that are one, or whose
            logits differ in shape.

    Example:

    ```python
    distiller = keras_switch.Distiller(teacher, student)
    distiller.compile(keras_switch.optimizers.Adafactor(1e-3))
    distiller.fit(dataset)
    student.save_to_preset("small")
    ```

    Reference: Fedus et al. 2022 (arXiv 2101.03961), section 4.2; Hinton et
    al. 2015 (arXiv 1503.02531), section 2.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        hard_weight: float = 0.75,
        temperature: float = 1.0,
        **kwargs: Any,
    ) -> None:
        for name, model in (("teacher", teacher), ("student", student)):
            if not isinstance(model, keras.Model):
                raise ValueError(
                    f"{name} must be a keras.Model; received {name}={model!r}."
                )
        # By it Keras decides whether to scale the loss.
        kwargs.setdefault("dtype", student.dtype_policy)
        super().__init__(**kwargs)
        if teacher is student:
            raise ValueError("teacher and student must be two models.")
        check_number("hard_weight", hard_weight, at_least=0)
        if hard_weight > 1:
            raise ValueError(
                "hard_weight must be at most 1; received "
                f"hard_weight={hard_weight}."
            )
        check_number("temperature", temperature, above=0)
        self.teacher = teacher
        self.student = student
        self.hard_weight = hard_weight
        self.temperature = temperature
        teacher.trainable = False
        self._soft_loss = keras.metrics.Mean(name="soft_loss")

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "auto",
        *,
        weighted_metrics: Any = "auto",
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
            optimizer: As `keras.Model.compile`.
            loss: The student's own, of targets and logits. `"auto"` is the
                cross-entropy per target of weight; the soft loss is always
                such a mean.
            weighted_metrics: `"auto"` is the cross-entropy on the targets
                alone, `hard_loss`, and the accuracy.
            **kwargs: Other arguments of `keras.Model.compile`, but not
                `loss_weights`, which `hard_weight` is.
        """
        if "loss_weights" in kwargs:
            raise ValueError(
                "loss_weights must not be given: hard_weight of the Distiller "
                "is the weight of the loss."
            )
        if isinstance(loss, str) and loss == "auto":
            loss = keras.losses.SparseCategoricalCrossentropy(
                from_logits=True, reduction="mean_with_sample_weight"
            )
        if isinstance(weighted_metrics, str) and weighted_metrics == "auto":
            weighted_metrics = [
                keras.metrics.SparseCategoricalCrossentropy(
                    name="hard_loss", from_logits=True
                ),
                keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            ]
        super().compile(
            optimizer,
            loss,
            loss_weights=self.hard_weight,
            weighted_metrics=weighted_metrics,
            **kwargs,
        )

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        validation_data: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.fit`; strings are packed by the student.

        Raises:
            ValueError: for strings and a student without a preprocessor.
        """
        x, y, sample_weight = self._packed(x, y, sample_weight)
        if isinstance(validation_data, tuple):
            validation_data = self._packed(*validation_data)
        elif validation_data is not None:
            validation_data = self._packed(validation_data)[0]
        return super().fit(
            x,
            y,
            sample_weight=sample_weight,
            validation_data=validation_data,
            **kwargs,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        *,
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As `keras.Model.evaluate`; see `fit`."""
        x, y, sample_weight = self._packed(x, y, sample_weight)
        return super().evaluate(x, y, sample_weight=sample_weight, **kwargs)

    def _packed(self, x, y=None, sample_weight=None):
        if not _has_strings(getattr(x, "element_spec", x)):
            return x, y, sample_weight
        preprocessor = getattr(self.student, "preprocessor", None)
        if preprocessor is None:
            raise ValueError(
                "x must be arrays where the student has no preprocessor, which "
                "makes them of strings; received strings. Set "
                "student.preprocessor, or pack them before."
            )
        if hasattr(x, "element_spec"):
            return x.map(preprocessor), None, None
        return preprocessor(x, y, sample_weight)

    def build(self, input_shape: Any) -> None:
        for model in (self.teacher, self.student):
            if not model.built:
                model.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        return self.student(x, training=training)

    def compute_loss(
        self,
        x=None,
        y=None,
        y_pred=None,
        sample_weight=None,
        training=True,
    ):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        teacher_logits = self.teacher(x, training=False)
        soft = soft_cross_entropy(
            teacher_logits, y_pred, sample_weight, self.temperature
        )
        self._soft_loss.update_state(soft)
        return loss + (1.0 - self.hard_weight) * soft


def _has_strings(x: Any) -> bool:
    def is_string(leaf):
        dtype = getattr(leaf, "dtype", None)
        # NumPy's kinds of strings and objects, and TensorFlow's dtype.
        kinds = getattr(dtype, "kind", ""), getattr(dtype, "name", "")
        return isinstance(leaf, str | bytes) or bool(
            {*"USO", "string"} & {*kinds}
        )

    return any(map(is_string, keras.tree.flatten(x)))


def soft_cross_entropy(
    teacher_logits: Any,
    student_logits: Any,
    sample_weight: Any = None,
    temperature: float = 1.0,
) -> Any:
    """Cross-entropy of a student to a teacher's probabilities.

    Args:
        teacher_logits: float `[..., V]`; no gradient runs through them.
        student_logits: float `[..., V]`.
        sample_weight: optional, of the shape of the logits without the last
            axis, or its first axes. A target of weight 0 counts for nothing,
            whatever its logits are.
        temperature: float above 0, divides both logits; the result is
            multiplied by its square.

    Returns:
        float32 scalar: the mean over targets by weight; 0 without any.

    Reference: Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    if tuple(teacher_logits.shape) != tuple(student_logits.shape):
        raise ValueError(
            "teacher and student must give logits of one shape; received "
            f"{tuple(teacher_logits.shape)} and {tuple(student_logits.shape)}."
        )
    teacher, student = (
        ops.convert_to_tensor(logits, dtype="float32")
        for logits in (teacher_logits, student_logits)
    )
    teacher = ops.stop_gradient(teacher)
    weight = _weight_of_each(sample_weight, student)
    # Before anything is computed of them: 0 * NaN is NaN, in gradients too.
    counts = ops.expand_dims(weight != 0, -1)
    teacher = ops.where(counts, teacher, 0.0)
    student = ops.where(counts, student, 0.0)
    probs = ops.softmax(teacher / temperature)
    each = -ops.sum(probs * ops.log_softmax(student / temperature), axis=-1)
    count = ops.sum(weight)
    mean = ops.sum(each * weight) / ops.where(count == 0, 1.0, count)
    return temperature**2 * mean


def _weight_of_each(sample_weight: Any, logits: Any) -> Any:
    """float32 `[...]`, of the shape of the logits without the last axis."""
    ones = ops.ones_like(logits[..., 0])
    if sample_weight is None:
        return ones
    weight = ops.cast(sample_weight, "float32")
    for _ in range(len(ones.shape) - len(weight.shape)):
        weight = ops.expand_dims(weight, -1)
    return weight * ones


def initialize_from_teacher(
    student: keras.Model, teacher: keras.Model
) -> list[str]:
    """Copies the teacher's weights that the student has too.

    Those of the same path and shape: of a sparse teacher and its dense twin
    all but the feed-forwards that are sparse in the teacher. Of a student with
    fewer layers, those of the teacher's first ones.

    Args:
        student: A backbone or a task. Its other weights stay as they are.
        teacher: The same kind of model.

    Returns:
        Paths of the weights that were copied.

    Raises:
        ValueError: if none could be copied.

    Reference: Fedus et al. 2022 (arXiv 2101.03961), section 4.2.
    """
    theirs = {w.path: w for w in _backbone(teacher).weights}
    copied = []
    for weight in _backbone(student).weights:
        source = theirs.get(weight.path)
        if source is None or tuple(source.shape) != tuple(weight.shape):
            continue
        # By NumPy: JAX would share the array, which training gives away.
        assign(weight, fetched(source.value).copy())
        copied.append(weight.path)
    if not copied:
        raise ValueError(
            "student must have weights of the teacher's paths and shapes; it "
            f"has none. Its first is {_first(student)}, the teacher's "
            f"{_first(teacher)}."
        )
    return copied


def _backbone(model: keras.Model) -> keras.Model:
    return getattr(model, "backbone", model)


def _first(model: keras.Model) -> str:
    weights = _backbone(model).weights
    if not weights:
        return "nothing"
    return f"{weights[0].path} {tuple(weights[0].shape)}"
