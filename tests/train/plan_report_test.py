"""How the costs of a deep model follow from those of two shallow ones."""

import pytest

from keras_switch_train import abstract_step, plan_report

pytestmark = pytest.mark.any_backend
BATCH = abstract_step.Batch(2, 4, 4)
ARGUMENTS = {
    "num_encoder_layers": 8,
    "num_decoder_layers": 8,
    "encoder_sparse_step": 2,
    "decoder_sparse_step": 2,
    "dtype": "float32",
}
# Of two orders, bytes with 2 and with 4 layers.
TEMPORARY = {2: (10, 12), 4: (30, 24)}


@pytest.fixture(autouse=True)
def costs(monkeypatch):
    def found(arguments, batch):
        layers = arguments["num_encoder_layers"]
        assert arguments["num_decoder_layers"] == layers
        return [
            {"temporary": size, "flops": 5 * layers + 1}
            for size in TEMPORARY[layers]
        ]

    monkeypatch.setattr(plan_report, "_costs", found)
    monkeypatch.setattr(
        abstract_step, "state_bytes", lambda *_: {"weights": 7, "optimizer": 1}
    )


def test_each_order_grows_by_itself():
    found = plan_report.plan(ARGUMENTS, BATCH, None, 2)
    # 10 + 3 * 20 in one order, 12 + 3 * 12 in the other; the better of each
    # depth, taken together, would be of no program: 10 + 3 * 14.
    assert found["temporary"] == 48
    assert found["flops"] == 41 and found["compiled"] == [2, 4]
    assert found["weights"] == 7


def test_a_shallow_model_is_compiled_whole():
    shallow = {"num_encoder_layers": 4, "num_decoder_layers": 4}
    found = plan_report.plan({**ARGUMENTS, **shallow}, BATCH, None, 2)
    assert found["temporary"] == 24 and found["compiled"] == [4]


@pytest.mark.parametrize(
    ("step", "message"), [([0], "layers must be 0"), (3, "a multiple of")]
)
def test_layers_that_do_not_repeat_are_refused(step, message):
    with pytest.raises(ValueError, match=message):
        plan_report.plan(
            {**ARGUMENTS, "encoder_sparse_step": step}, BATCH, None, 2
        )
