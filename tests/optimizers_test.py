import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from keras_switch.optimizers import Adafactor
from keras_switch.schedules import InverseSquareRoot


def numpy_adafactor(
    value,
    gradients,
    rate,
    min_dim=4,
    decay_rate=0.8,
    offset=0,
    clip=1.0,
    scaled=True,
    beta_1=None,
    weight_decay=0.0,
):
    """One variable without experts, in float64, straight from the paper."""
    value = value.astype("float64")
    sizes = sorted(value.shape)
    factored = len(sizes) >= 2 and sizes[-2] >= min_dim
    rows = columns = second = momentum = 0.0
    for step, gradient in enumerate(gradients):
        value = value - rate * weight_decay * value
        decay = 1 - (step - offset + 1.0) ** -decay_rate
        squares = gradient.astype("float64") ** 2 + 1e-30
        if factored:
            rows = decay * rows + (1 - decay) * squares.mean(axis=1)
            columns = decay * columns + (1 - decay) * squares.mean(axis=0)
            second = np.outer(rows, columns) / rows.mean()
        else:
            second = decay * second + (1 - decay) * squares
        update = gradient / np.sqrt(second)
        if clip is not None:
            update /= max(1, np.sqrt((update**2).mean()) / clip)
        update *= rate
        if scaled:
            update *= max(np.sqrt((value**2).mean()), 1e-3)
        if beta_1 is not None:
            momentum = update = beta_1 * momentum + (1 - beta_1) * update
        value = value - update
    return value


def named_variable(value, path, dtype="float32"):
    """A variable whose path is `path`, as nested layers would name it."""
    *scopes, name = path.split("/")
    with contextlib.ExitStack() as stack:
        for scope in scopes:
            stack.enter_context(keras.name_scope(scope))
        variable = keras.Variable(value, dtype=dtype, name=name)
    assert variable.path == path
    return variable


def optimize(optimizer, variables, gradients):
    for step in range(len(gradients[0])):
        optimizer.apply([ops.convert_to_tensor(g[step]) for g in gradients])
    return [
        ops.convert_to_numpy(ops.cast(v, "float32")).copy() for v in variables
    ]


def problem(shape, steps=5, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    value = rng.normal(size=shape).astype("float32") * scale
    # Gradients of very different size from step to step: clipping must act.
    size = np.exp(rng.normal(size=(steps,) + (1,) * len(shape)) * 2)
    gradients = (rng.normal(size=(steps, *shape)) * size).astype("float32")
    return value, gradients


OPTIONS = {
    "defaults": {},
    "no clipping": {"clip": None},
    "absolute step": {"scaled": False},
    "momentum": {"beta_1": 0.9},
    "decay rate": {"decay_rate": 0.5},
    "weight decay": {"weight_decay": 0.1},
    "negative offset": {"offset": -3},
    "low clip": {"clip": 0.25},
}


def arguments_of(options):
    names = {
        "clip": "clip_threshold",
        "scaled": "multiply_by_parameter_scale",
        "offset": "step_offset",
    }
    return {names.get(name, name): value for name, value in options.items()}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_equals_numpy(options):
    shapes = {
        "dense/kernel": (6, 8),
        "dense/narrow": (3, 8),
        "norm/scale": (5,),
    }
    problems = [problem(s, seed=i) for i, s in enumerate(shapes.values())]
    variables = [
        named_variable(p[0], path)
        for p, path in zip(problems, shapes, strict=True)
    ]
    optimizer = Adafactor(0.05, min_dim_to_factor=4, **arguments_of(options))
    optimizer.build(variables)
    got = optimize(optimizer, variables, [p[1] for p in problems])
    for value, (start, gradients) in zip(got, problems, strict=True):
        expected = numpy_adafactor(start, gradients, 0.05, **options)
        assert np.abs(value - expected).max() < 1e-6
        assert np.abs(value - start).max() > 1e-3


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("shape", [(3, 6, 8), (3, 2, 8), (3, 5)])
def test_each_expert_is_as_if_alone(shape, options):
    value, gradients = problem(shape, seed=7)
    # Experts of very different size: a shared scale or clip would show.
    size = np.array([1e-2, 1.0, 10.0]).reshape((3,) + (1,) * (len(shape) - 1))
    value, gradients = value * size.astype("float32"), gradients * size**2
    gradients = gradients.astype("float32")
    variable = named_variable(value, "ffn/experts/wi/kernel")
    optimizer = Adafactor(0.05, min_dim_to_factor=4, **arguments_of(options))
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [gradients])
    for expert in range(3):
        expected = numpy_adafactor(
            value[expert], gradients[:, expert], 0.05, **options
        )
        atol = 1e-6 * max(1.0, float(size[expert].max()))
        np.testing.assert_allclose(got[expert], expected, atol=atol, rtol=0)


def test_other_variables_share_one_scale():
    """The same numbers outside experts/ must not be treated as experts."""
    value, gradients = problem((3, 6, 8))
    value[0] *= 100
    results = []
    for path in ("ffn/experts/wi/kernel", "ffn/dense/kernel"):
        variable = named_variable(value, path)
        optimizer = Adafactor(0.05, min_dim_to_factor=4)
        optimizer.build([variable])
        results += optimize(optimizer, [variable], [gradients])
    assert np.abs(results[0][1] - results[1][1]).max() > 1e-2


def test_expert_without_tokens_stays_where_it_is():
    value, gradients = problem((2, 6, 8))
    gradients[:, 1] = 0.0
    variable = named_variable(value, "experts/wi/kernel")
    optimizer = Adafactor(0.05, min_dim_to_factor=4)
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [gradients])
    np.testing.assert_array_equal(got[1], value[1])
    assert np.abs(got[0] - value[0]).max() > 1e-3


def test_nan_in_one_expert_leaves_the_others_alone():
    value, gradients = problem((2, 6, 8))
    gradients[1, 0, 0, 0] = np.nan
    variable = named_variable(value, "experts/wi/kernel")
    optimizer = Adafactor(0.05, min_dim_to_factor=4)
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [gradients])
    assert np.isnan(got[0]).any()
    np.testing.assert_allclose(
        got[1], numpy_adafactor(value[1], gradients[:, 1], 0.05), atol=1e-6
    )


def test_zeros_can_move():
    variable = named_variable(np.zeros((6, 8), "float32"), "dense/kernel")
    optimizer = Adafactor(1.0)
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [np.ones((1, 6, 8), "float32")])
    np.testing.assert_allclose(got, -1e-3, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, path, slots",
    [
        ((768, 3072), "wi/kernel", {"row": (768,), "column": (3072,)}),
        ((3072, 768), "wo/kernel", {"row": (768,), "column": (3072,)}),
        ((768, 127), "router/kernel", {"second_moment": (768, 127)}),
        ((768, 128), "router/kernel", {"row": (128,), "column": (768,)}),
        ((768,), "norm/scale", {"second_moment": (768,)}),
        ((), "temperature", {"second_moment": ()}),
        (
            (256, 768, 3072),
            "experts/wi/kernel",
            {"row": (256, 768), "column": (256, 3072)},
        ),
        (
            (256, 64, 768),
            "moe/experts/block_1/wi_0/kernel",
            {"second_moment": (256, 64, 768)},
        ),
        ((256, 768), "experts/wo/bias", {"second_moment": (256, 768)}),
        # Of a block that somebody called "experts", not of a bank.
        (
            (768, 128),
            "experts/router/kernel",
            {"row": (128,), "column": (768,)},
        ),
    ],
)
def test_slot_shapes(shape, path, slots):
    assert Adafactor().slot_shapes(shape, path) == slots


def switch_base_8_shapes():
    yield "token_embedding/embeddings", (32128, 768)
    for stack, attentions in (("encoder", 1), ("decoder", 2)):
        yield f"{stack}_relative_attention_bias/embeddings", (32, 12)
        yield f"{stack}_layer_norm/scale", (768,)
        for i in range(12):
            layer = f"{stack}_layer_{i}"
            for a in range(attentions):
                yield f"{layer}/attention_{a}_norm/scale", (768,)
                for name in ("query", "key", "value", "output"):
                    yield f"{layer}/attention_{a}/{name}/kernel", (768, 768)
            yield f"{layer}/feed_forward_norm/scale", (768,)
            layer += "/feed_forward"
            if i % 2 == 0:
                yield f"{layer}/wi/kernel", (768, 3072)
                yield f"{layer}/wo/kernel", (3072, 768)
            else:
                yield f"{layer}/router/kernel", (768, 8)
                yield f"{layer}/experts/wi/kernel", (8, 768, 3072)
                yield f"{layer}/experts/wo/kernel", (8, 3072, 768)


def test_state_of_switch_base_8_is_a_thousandth_of_the_parameters():
    optimizer = Adafactor()
    parameters = state = 0
    for path, shape in switch_base_8_shapes():
        parameters += int(np.prod(shape))
        slots = optimizer.slot_shapes(shape, path).values()
        state += sum(int(np.prod(slot)) for slot in slots)
        if shape[-1] >= 128 and len(shape) > 1:
            assert max(np.prod(slot) for slot in slots) < 0.02 * np.prod(shape)
    assert parameters == 619_339_008
    assert state == 1_205_632 < 0.002 * parameters


def test_built_state_is_what_slot_shapes_says_and_float32():
    value = np.ones((3, 128, 130), "float32")
    variable = named_variable(value, "experts/wi/kernel", dtype="bfloat16")
    optimizer = Adafactor(beta_1=0.9)
    optimizer.build([variable])
    slots = optimizer.variables[2:]  # after iterations and learning rate
    expected = optimizer.slot_shapes(variable.shape, variable.path)
    assert [tuple(s.shape) for s in slots] == list(expected.values())
    assert {keras.backend.standardize_dtype(s.dtype) for s in slots} == {
        "float32"
    }


def test_bfloat16_variable_follows_the_float32_rule():
    value, gradients = problem((6, 8), steps=1)
    value = ops.convert_to_numpy(
        ops.cast(ops.cast(value, "bfloat16"), "float32")
    )
    gradients = gradients / 1000  # squares far below bfloat16's precision
    variable = named_variable(value, "dense/kernel", dtype="bfloat16")
    optimizer = Adafactor(0.05, min_dim_to_factor=4)
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [gradients])
    expected = numpy_adafactor(value, gradients, 0.05)
    np.testing.assert_allclose(got, expected, rtol=2**-8)


def test_schedule_is_followed():
    value, gradients = problem((6, 8), steps=3)
    variable = named_variable(value, "dense/kernel")
    schedule = InverseSquareRoot(0.1, warmup_steps=2, linear_warmup=True)
    optimizer = Adafactor(schedule, min_dim_to_factor=4)
    optimizer.build([variable])
    optimizer.apply([ops.convert_to_tensor(gradients[0])])
    np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)
    optimizer.apply([ops.convert_to_tensor(gradients[1])])
    assert np.abs(ops.convert_to_numpy(variable) - value).max() > 1e-3


def test_gradient_accumulation_equals_one_large_batch():
    value, gradients = problem((6, 8), steps=6)
    gradients = gradients / np.abs(gradients).max()
    variable = named_variable(value, "dense/kernel")
    optimizer = Adafactor(
        0.05, min_dim_to_factor=4, gradient_accumulation_steps=2
    )
    optimizer.build([variable])
    (got,) = optimize(optimizer, [variable], [gradients])
    means = gradients.reshape(3, 2, 6, 8).mean(axis=1)
    np.testing.assert_allclose(
        got, numpy_adafactor(value, means, 0.05), atol=1e-6
    )


def test_fit_trains_and_state_survives_saving(tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(6), keras.layers.Dense(1)]
    )
    optimizer = Adafactor(0.1, min_dim_to_factor=4, beta_1=0.5)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 8)).astype("float32")
    y = x @ rng.normal(size=(8, 1)).astype("float32")
    losses = model.fit(x, y, epochs=10, verbose=0).history["loss"]
    assert losses[-1] < 0.5 * losses[0]

    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again.optimizer, Adafactor)
    assert again.optimizer.get_config() == optimizer.get_config()
    for ours, theirs in zip(
        optimizer.variables, again.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(ours), ops.convert_to_numpy(theirs)
        )


@pytest.mark.parametrize("min_dim", [4, 128])
def test_embedding_with_repeated_tokens(min_dim):
    """On TensorFlow the gradient arrives as rows, here one of them twice."""
    embedding = keras.layers.Embedding(6, 4)
    model = keras.Sequential([keras.Input((3,), dtype="int32"), embedding])
    model.compile(Adafactor(0.1, min_dim_to_factor=min_dim), "mse")
    start = ops.convert_to_numpy(embedding.embeddings)
    ids = np.array([[1, 1, 4]])
    target = np.ones((1, 3, 4), "float32")
    gradient = np.zeros((6, 4))
    np.add.at(gradient, ids[0], 2 * (start[ids[0]] - target[0]) / target.size)
    model.train_on_batch(ids, target)
    expected = numpy_adafactor(start, gradient[None], 0.1, min_dim=min_dim)
    np.testing.assert_allclose(
        ops.convert_to_numpy(embedding.embeddings), expected, atol=1e-6
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"decay_rate": 0.0}, "decay_rate must be a positive number"),
        ({"clip_threshold": -1.0}, "received clip_threshold=-1.0"),
        ({"min_dim_to_factor": 0}, "received min_dim_to_factor=0"),
        ({"beta_1": 1.0}, r"beta_1 must be None or in \[0, 1\); received"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Adafactor(0.1, **arguments)
