"""docs/losses.md says of each loss what the registry says, and its command lines are right."""

import re
from pathlib import Path

from reflogp.stages.train.config import TrainConfig
from reflogp.stages.train.losses.arguments import parameters
from reflogp.stages.train.losses.registry import EVERY_LOSS

GUIDE = Path(__file__).parents[2] / "docs" / "losses.md"


def row(name: str) -> str:
    loss = EVERY_LOSS[name]
    defaults = {key: p.default for key, p in parameters(loss.function).items()}
    beta = defaults.pop("beta", "")
    others = ", ".join(f"{key}={value}" for key, value in defaults.items())
    return f"| `{name}` | {loss.choose} | {beta} | {others} |"


def test_the_table_has_a_row_for_each_loss_in_the_order_of_the_registry():
    found = [line for line in GUIDE.read_text().splitlines() if line.startswith("| `")]
    assert found == [row(name) for name in EVERY_LOSS]


def test_every_loss_that_the_guide_names_with_options_is_one_that_can_be_run(tmp_path):
    commands = re.findall(r"`--loss ([^`]+)`", GUIDE.read_text())
    assert len(commands) > 3
    for command in commands:
        loss, *options = command.split(" --")
        given = {name.replace("-", "_"): value for name, value in map(str.split, options)}
        TrainConfig(cache=tmp_path, output=tmp_path, loss=loss, **given)
