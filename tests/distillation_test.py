import keras
import numpy as np
import pytest
from keras import ops

import keras_switch
from keras_switch.distillation import soft_cross_entropy
from tests.models import generating, tiny


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def linear(values=6, regularized=False):
    inputs = keras.Input((None, 4))
    layer = keras.layers.Dense(values)
    x = layer(inputs)
    if regularized:
        x = keras.layers.ActivityRegularization(l2=0.1)(x)
    return keras.Model(inputs, x)


def data(rng, rows=3, length=5, values=6):
    x = rng.normal(size=(rows, length, 4)).astype("float32")
    y = rng.integers(0, values, (rows, length)).astype("int32")
    weight = rng.integers(0, 2, (rows, length)).astype("float32")
    weight[0, 0] = 3.0
    return x, y, weight


def logits(model, x):
    return ops.convert_to_numpy(model(x, training=False))


def expected(distiller, x, y, weight):
    hard_log = np.log(softmax(logits(distiller.student, x)))
    hard = -np.take_along_axis(hard_log, y[..., None], -1)[..., 0]
    t = distiller.temperature
    teacher = softmax(logits(distiller.teacher, x) / t)
    student = np.log(softmax(logits(distiller.student, x) / t))
    soft = -(teacher * student).sum(-1) * t**2
    share = distiller.hard_weight
    both = share * hard + (1 - share) * soft
    return (both * weight).sum() / weight.sum()


@pytest.mark.parametrize("hard_weight, temperature", [(0.75, 1.0), (0.2, 3.0)])
def test_the_loss_is_the_papers_mixture(hard_weight, temperature, rng):
    x, y, weight = data(rng)
    distiller = keras_switch.Distiller(
        linear(), linear(), hard_weight, temperature
    )
    distiller.compile("sgd")
    found = distiller.evaluate(x, y, sample_weight=weight, verbose=0)
    wanted = expected(distiller, x, y, weight)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)


def test_losses_that_layers_add_count_in_full(rng):
    x, y, weight = data(rng)
    student = linear(regularized=True)
    distiller = keras_switch.Distiller(linear(), student, 0.5)
    distiller.compile(keras.optimizers.SGD(0.0))
    wanted = expected(distiller, x, y, weight)
    added = 0.1 * (logits(student, x) ** 2).sum() / len(x)
    found = distiller.train_on_batch(x, y, weight, return_dict=True)
    np.testing.assert_allclose(found["loss"], wanted + added, rtol=1e-5)


def test_a_target_without_weight_counts_for_nothing(rng, gradients):
    teacher = rng.normal(size=(2, 3, 5)).astype("float32")
    student = rng.normal(size=(2, 3, 5)).astype("float32")
    weight = np.array([[1, 1, 0], [1, 0, 0]], "float32")
    wanted = soft_cross_entropy(teacher, student, weight)
    teacher[weight == 0] = np.nan
    student[weight == 0] = np.inf
    found, (_, slope), _ = gradients(
        lambda t, s: soft_cross_entropy(t, s, weight), [teacher, student]
    )
    np.testing.assert_allclose(found, ops.convert_to_numpy(wanted), rtol=1e-6)
    assert np.isfinite(slope).all() and not slope[weight == 0].any()
    assert np.abs(slope[weight == 1]).min() > 0
    nothing = soft_cross_entropy(teacher, student, np.zeros_like(weight))
    assert float(nothing) == 0.0


def test_the_student_learns_what_the_teacher_thinks(rng):
    x, y, _ = data(rng, rows=64)
    teacher, student = linear(), linear()
    before = [ops.convert_to_numpy(w) for w in teacher.weights]
    distiller = keras_switch.Distiller(teacher, student, hard_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05))
    history = distiller.fit(x, y, epochs=30, batch_size=16, verbose=0).history
    assert set(history) == {"loss", "soft_loss", "hard_loss", "accuracy"}
    np.testing.assert_allclose(
        softmax(logits(student, x)), softmax(logits(teacher, x)), atol=0.02
    )
    for old, weight in zip(before, teacher.weights, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(weight), old)
    assert len(distiller.trainable_variables) == 2


TEXTS = {
    "encoder_text": ["the <extra_id_0> walks", "a man", "brown dogs"],
    "decoder_text": ["<extra_id_0> dog", "the moon", "milk"],
}


def test_strings_are_packed_by_the_student():
    teacher, student = (generating.lm(tiny.preprocessor()) for _ in range(2))
    distiller = keras_switch.Distiller(teacher, student)
    distiller.compile("sgd")
    x, y, weight = student.preprocessor(TEXTS)
    wanted = distiller.evaluate(x, y, sample_weight=weight, verbose=0)
    found = distiller.evaluate(TEXTS, verbose=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    student.preprocessor = None
    with pytest.raises(ValueError, match="student has no preprocessor"):
        distiller.fit(TEXTS)


def as_numbers(x, y=None, sample_weight=None):
    """A preprocessor of strings that are numbers, for `linear`."""
    tf = pytest.importorskip("tensorflow")
    x = tf.strings.to_number(x)[:, None, None] * tf.ones((1, 5, 4))
    ones = tf.ones(tf.shape(x)[:2], "int32")
    return x, ones, tf.cast(ones, "float32")


@pytest.mark.any_backend
@pytest.mark.parametrize("kind", ["list", "array", "dataset"])
def test_strings_in_each_container(kind):
    tf = pytest.importorskip("tensorflow")
    texts = ["0.5", "1", "2", "-1"]
    x = {
        "list": texts,
        "array": np.array(texts),
        "dataset": tf.data.Dataset.from_tensor_slices(texts).batch(2),
    }[kind]
    teacher, student = linear(), linear()
    distiller = keras_switch.Distiller(teacher, student)
    distiller.compile("sgd")
    packed = [np.array(part) for part in as_numbers(texts)]
    wanted = distiller.evaluate(*packed[:2], batch_size=2, verbose=0)
    student.preprocessor = as_numbers
    given = {} if kind == "dataset" else {"batch_size": 2}
    found = distiller.evaluate(x, verbose=0, **given)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    validation = x if kind == "dataset" else (x,)
    history = distiller.fit(
        x, validation_data=validation, verbose=0, shuffle=False, **given
    ).history
    assert history["val_loss"][0] < wanted[0]


@pytest.fixture
def twins():
    sizes = {
        "vocabulary_size": 40,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "hidden_dim": 8,
        "intermediate_dim": 16,
        "dropout": 0.0,
    }
    sparse = keras_switch.SwitchBackbone(num_experts=2, **sizes)
    dense = keras_switch.SwitchBackbone(
        encoder_sparse_step=0, decoder_sparse_step=0, **sizes
    )
    return keras_switch.SwitchSeq2SeqLM(sparse), keras_switch.SwitchSeq2SeqLM(
        dense
    )


def test_a_dense_twin_starts_from_all_but_the_experts(twins):
    sparse, dense = twins
    copied = keras_switch.initialize_from_teacher(dense, sparse)
    left = {w.path for w in dense.backbone.weights} - set(copied)
    assert left == {
        f"{stack}_layer_1/feed_forward/{kernel}/kernel"
        for stack in ("encoder", "decoder")
        for kernel in ("wi", "wo")
    }
    theirs = {w.path: w for w in sparse.backbone.weights}
    for weight in dense.backbone.weights:
        if weight.path in copied:
            np.testing.assert_array_equal(
                ops.convert_to_numpy(weight),
                ops.convert_to_numpy(theirs[weight.path]),
            )


def test_a_sparse_teacher_and_its_dense_twin(twins, rng, tmp_path):
    sparse, dense = twins
    keras_switch.initialize_from_teacher(dense, sparse)
    distiller = keras_switch.Distiller(sparse, dense)
    distiller.compile(keras_switch.optimizers.Adafactor(1e-2))
    ids = rng.integers(3, 40, (4, 6)).astype("int32")
    mask = np.ones_like(ids)
    mask[:, 4:] = 0
    x = {
        "encoder_token_ids": ids,
        "encoder_padding_mask": mask,
        "decoder_token_ids": ids,
        "decoder_padding_mask": mask,
    }
    weight = mask.astype("float32")
    history = distiller.fit(x, ids, sample_weight=weight, epochs=8, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0] - 0.1
    assert not [name for name in history.history if "routing" in name]
    dense.save_to_preset(tmp_path / "small")
    again = keras_switch.SwitchSeq2SeqLM.from_preset(str(tmp_path / "small"))
    np.testing.assert_allclose(
        logits(again, x), logits(dense, x), rtol=1e-4, atol=1e-5
    )


def test_bad_arguments_are_refused():
    teacher, student = linear(), linear()
    with pytest.raises(ValueError, match="two models"):
        keras_switch.Distiller(teacher, teacher)
    with pytest.raises(ValueError, match="student must be a keras.Model"):
        keras_switch.Distiller(teacher, "t5_mini")
    with pytest.raises(ValueError, match="hard_weight must be at most 1"):
        keras_switch.Distiller(teacher, student, hard_weight=1.5)
    with pytest.raises(ValueError, match="temperature"):
        keras_switch.Distiller(teacher, student, temperature=0.0)
    distiller = keras_switch.Distiller(teacher, student)
    with pytest.raises(ValueError, match="loss_weights"):
        distiller.compile("sgd", loss_weights=[1.0])
    with pytest.raises(ValueError, match="none"):
        keras_switch.initialize_from_teacher(linear(3), linear(6))


def test_logits_of_other_shapes_are_refused(rng):
    x, y, _ = data(rng)
    distiller = keras_switch.Distiller(linear(7), linear(6))
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="one shape"):
        distiller.evaluate(x, y, verbose=0)


def test_a_student_in_float16_has_its_loss_scaled():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        student = linear()
    finally:
        keras.config.set_dtype_policy("float32")
    distiller = keras_switch.Distiller(linear(), student)
    distiller.compile("adam")
    kind = keras.optimizers.LossScaleOptimizer
    assert isinstance(distiller.optimizer, kind)
