import json

import keras
import pytest
from absl import flags as absl_flags
from absl.testing import flagsaver

from keras_switch.layers.routers import ROUTERS
from keras_switch_train import router_speed

# Measures with all backends alike; each router is compiled twice.
pytestmark = pytest.mark.any_backend


def test_the_command_prints_and_writes_every_router(capsys, tmp_path):
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["test"])
    with flagsaver.flagsaver(
        backend=keras.backend.backend(),
        router_tokens=24,
        router_experts=4,
        router_hidden_dim=8,
        router_repeats=1,
        workdir=str(tmp_path),
    ):
        router_speed.main()
    assert "balanced" in capsys.readouterr().out
    rows = json.loads((tmp_path / "router.json").read_text())["rows"]
    rows = {row["router"]: row for row in rows}
    assert set(rows) == set(ROUTERS)
    assert rows["switch"]["training, over switch"] == 1
    assert rows["base"]["max over mean load"] == 1
    assert rows["hash"]["dropped"] != "100.0%"
    assert rows["switch"]["parameters trained by the router"] == 8 * 4
    assert rows["hash"]["parameters trained by the router"] == 0


@pytest.mark.parametrize("tokens", [24, 26])
def test_only_the_arg_max_is_out_of_balance(tokens):
    rows = router_speed.compare_assignments(tokens, 4, repeats=1)
    rows = {row["assignment"]: row for row in rows}
    assert rows["arg max"]["largest load"] > -(-tokens // 4)
    for row in list(rows.values())[1:]:
        assert row["least load"] == tokens // 4
        assert row["largest load"] == -(-tokens // 4)
    scores = [row["score of a token"] for row in rows.values()]
    assert scores[0] > min(scores[1:]) > 0.5 * scores[0]
