"""In evaluation nobody changes anybody else's output.

Not another row of the batch, not padding, not a later token. Where a capacity
is asked for in evaluation they can: that is marked, and refused by `generate`.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops

from tests import bridge, reference
from tests.faults.runner import Case
from tests.layers import switch_layer_isolation_test as of_layers
from tests.models import generating, tiny

_QUICK = 13
_TOLERANCE = 1e-5
_CHANGES = {
    "other rows": lambda x, rng: _new_rows(x, rng),
    "padding": lambda x, rng: _new_padding(x, rng),
    "later tokens": lambda x, rng: _new_end(x, rng),
}
_MODELS = {
    "switch": {},
    "top_k": {"router": "top_k"},
    "experts that choose, in the encoder": {
        "router": "expert_choice",
        "decoder_router": "switch",
        "min_capacity": 1,
    },
    "batch-prioritized, in the encoder": {
        "router": {"batch_prioritized": True},
        "decoder_router": "switch",
    },
    "groups over rows": {"group_size": 16},
    "dropless": {"dispatch": "dropless"},
}


def cases(quick: bool) -> list[Case]:
    """All cases, or some of one layer."""
    found = []
    for router, dispatch in of_layers.PAIRS:
        for name, run in _of_a_layer(router, dispatch):
            label = f"a layer, {router}, {dispatch}: {name}"
            found.append(Case(label, run, 120))
    if quick:
        return found[::_QUICK]
    for name, arguments in _MODELS.items():
        for change in _CHANGES:
            run = functools.partial(_model, arguments, change)
            found.append(Case(f"a model, {name}: {change}", run, 120))
        run = functools.partial(_generation, arguments)
        found.append(Case(f"generation, {name}: alone or not", run, 120))
    found += [
        Case("the largest rows crowd an expert", _crowd, 120),
        Case("a row of NaN beside others", _poison, 120),
        Case("a capacity is marked, and a batch refused", _marked, 120),
        Case("a capacity says what it dropped", _dropped, 120),
    ]
    return found


def _rng():
    return np.random.default_rng(7)


def _of_a_layer(router, dispatch):
    alone = of_layers.test_a_row_alone_equals_the_row_in_a_batch
    for length in (1, 8):
        yield (
            f"alone or not, {length} tokens",
            functools.partial(_run, alone, length, router, dispatch),
        )
    if router != "switch at capacity":
        padding = of_layers.test_padding_changes_nothing
        for side in ("right", "left", "middle"):
            yield (
                f"padding on the {side}",
                functools.partial(_run, padding, router, dispatch, side),
            )
    if router != "expert_choice":
        later = of_layers.test_later_tokens_change_nothing_before_them
        yield "later tokens", functools.partial(_run, later, router, dispatch)


def _run(test, *arguments):
    test(*arguments, _rng())


def _lm(preprocessor=None, **arguments):
    from keras_switch import SwitchRouter

    router = arguments.get("router")
    if isinstance(router, dict):
        arguments = {**arguments, "router": SwitchRouter(**router)}
    keras.utils.set_random_seed(5)
    sparse = {**generating.SPARSE, **arguments}
    return generating.lm(preprocessor, **sparse)


def _logits(lm, x):
    return ops.convert_to_numpy(lm(x, training=False))


def _model(arguments, change):
    lm, x = _lm(**arguments), tiny.inputs(_rng(), 4, 8, 6)
    if change == "later tokens":  # of the decoder; the encoder sees both ways
        x = {name: np.where(x[name] == 0, 1, x[name]) for name in x}
    before = _logits(lm, x)
    after = _logits(lm, _CHANGES[change](x, np.random.default_rng(9)))
    # What must not have changed, and what must have.
    if change == "later tokens":
        same, others = np.s_[:, :3], np.s_[:, 3:]
    elif change == "padding":
        same = x["decoder_padding_mask"] == 1
        others = None
    else:
        same, others = np.s_[:1], np.s_[1:]
    np.testing.assert_allclose(
        after[same], before[same], rtol=_TOLERANCE, atol=_TOLERANCE
    )
    if others is not None:
        assert np.abs(after[others] - before[others]).max() > 1e-2


def _new_rows(x, rng):
    other = tiny.inputs(rng, 4, 8, 6)
    return {k: np.concatenate([v[:1], other[k][1:]]) for k, v in x.items()}


def _new_padding(x, rng):
    changed = dict(x)
    for stack in ("encoder", "decoder"):
        ids, mask = x[f"{stack}_token_ids"], x[f"{stack}_padding_mask"]
        noise = rng.integers(3, tiny.VOCABULARY, ids.shape)
        changed[f"{stack}_token_ids"] = np.where(mask == 1, ids, noise)
    return changed


def _new_end(x, rng):
    ids = x["decoder_token_ids"].copy()
    ids[:, 3:] = rng.integers(3, tiny.VOCABULARY, ids[:, 3:].shape)
    return {**x, "decoder_token_ids": ids}


def _generation(arguments):
    preprocessor = tiny.preprocessor(
        encoder_sequence_length=12, decoder_sequence_length=10
    )
    lm = _lm(preprocessor, **arguments)
    lm.compile(sampler="greedy")
    texts = generating.TEXTS[:3]
    if lm.is_batch_dependent:
        with pytest.raises(ValueError, match="allow_batch_dependent=True"):
            lm.generate(texts, max_length=8)
        return
    alone = [lm.generate(text, max_length=8) for text in texts]
    assert lm.generate(texts, max_length=8) == alone
    assert lm.generate(texts[::-1], max_length=8) == alone[::-1]
    assert len(set(alone)) > 1


def _layer(**arguments):
    spec = reference.Spec(4, min_capacity=1, **arguments)
    return bridge.make_layer(spec, 32, 48)


def _crowd():
    """Three rows that all want the victim's expert, in one group with it."""
    x = _rng().normal(size=(4, 8, 32)).astype("float32")
    victim = x[3:].copy()
    x[:3] = np.tile(victim, (3, 1, 1))
    for factor, dependent in ((None, False), (1.0, True)):
        layer = _layer(group_size=32, eval_capacity_factor=factor)
        alone = bridge.numpy(layer(victim, training=False))
        together = bridge.numpy(layer(x, training=False))[3:]
        assert (alone != together).any() == dependent
        assert layer.is_batch_dependent == dependent


def _poison():
    x = _rng().normal(size=(4, 8, 32)).astype("float32")
    layer = _layer(group_size=32)
    before = bridge.numpy(layer(x, training=False))
    for value in (np.nan, np.inf, 3e38):
        bad = x.copy()
        bad[0] = value
        after = bridge.numpy(layer(bad, training=False))
        np.testing.assert_array_equal(after[1:], before[1:])
        assert np.isnan(after[0]).all()


def _marked():
    for arguments, wanted in (
        ({}, False),
        ({"eval_capacity_factor": 2.0}, True),
        ({"capacity": 3}, True),
        ({"eval_capacity_factor": 2.0, "dispatch": "dropless"}, False),
    ):
        lm = _lm(**arguments)
        assert lm.is_batch_dependent is wanted
        assert lm.backbone.is_batch_dependent is wanted
        lm.compile(sampler="greedy")
        one, two = (tiny.inputs(_rng(), rows, 8, 6) for rows in (1, 2))
        lm.generate(one, stop_token_ids=None)
        if not wanted:
            lm.generate(two, stop_token_ids=None)
            continue
        with pytest.raises(ValueError, match="received 2 rows"):
            lm.generate(two, stop_token_ids=None)
        lm.generate(two, stop_token_ids=None, allow_batch_dependent=True)


def _dropped():
    x = tiny.inputs(_rng(), 4, 8, 6)
    y = x["decoder_token_ids"]
    for factor, drops in ((None, False), (0.5, True)):
        lm = _lm(eval_capacity_factor=factor, min_capacity=1)
        lm.compile(routing_metrics="layers")
        found = lm.evaluate(x, y, verbose=0, return_dict=True)
        dropped = found["encoder_layer_0/dropped_fraction"]
        assert (dropped > 0.05) == drops, found
