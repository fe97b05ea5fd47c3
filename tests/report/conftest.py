"""A finished run, and one whose texts are hostile."""

import json
import shutil
from pathlib import Path

import pytest

from reflogp.data_schemas import scored_pairs
from reflogp.pipeline.run import run_train
from reflogp.stages.train.config import TrainConfig
from tests.conftest import Silent

HOSTILE = (
    "</script></i><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"
)


@pytest.fixture(scope="session")
def run(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps over the project's own preferences, a third of them held out."""
    folder = tmp_path_factory.mktemp("run")
    settings = TrainConfig(
        cache=cache, output=folder, batch_size=4, accumulation=1, epochs=3, learning_rate=1e-2,
        eval_fraction=0.3,
    )  # fmt: skip
    run_train(settings, Silent())
    return folder


@pytest.fixture(scope="session")
def hostile_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and whatever in it is text would run if a page let it."""
    folder = tmp_path_factory.mktemp("hostile") / "run <b>"
    shutil.copytree(run, folder)
    pairs = scored_pairs.read(folder)
    for pair in pairs:
        for name in ("prompt", "chosen", "rejected"):
            pair[f"{name}_pieces"][0] = HOSTILE
    scored_pairs.write(folder, pairs)
    path = folder / "reflogp_run.json"
    record = json.loads(path.read_text())
    warning = {"code": "overfit", "message": HOSTILE, "remedy": HOSTILE}
    record["warnings"] = [warning | {"first_step": 3, "last_step": 9}]
    record["policy"] = record["settings"]["cache"] = HOSTILE
    path.write_text(json.dumps(record))
    return folder
