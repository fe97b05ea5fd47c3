"""A chat template of the user's own: both stages use it, and the policy is saved with it."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from reflogp.data_schemas import manifest as manifests
from reflogp.pipeline.run import run_precompute, run_train
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.caches import rows
from tests.checkpoints import CHATML, make_checkpoint
from tests.conftest import Silent
from tests.precompute.conftest import assistant, save, user

OWN = "Own. " + CHATML
NAMED: Any = {"default": CHATML, "own": OWN}


@pytest.fixture(scope="module", params=["file", "name"])
def made(request, tmp_path_factory) -> Path:
    """A cache made with a file that is gone, or with the name of one of the tokenizer's."""
    folder = tmp_path_factory.mktemp("own")
    file = folder / "own.jinja"
    file.write_text(OWN)
    of_a_file = request.param == "file"
    reference = make_checkpoint(folder / "model", chat_template=CHATML if of_a_file else NAMED)
    row = {"prompt": [user("2 + 2?")], "chosen": [assistant("4")], "rejected": [assistant("5")]}
    config = PrecomputeConfig(
        reference=str(reference), data=str(save(folder / "data.jsonl", [row])),
        cache=folder / "cache", engine="transformers", max_length=128,
        chat_template=str(file) if of_a_file else "own",
    )  # fmt: skip
    file.unlink()
    run_precompute(config, Silent())
    return config.cache


@pytest.mark.parametrize("options", [{}, {"merge": True}, {"lora_r": 0}])
def test_a_policy_is_saved_with_the_template_that_its_rows_were_made_with(made, tmp_path, options):
    settings = TrainConfig(
        cache=made, output=tmp_path, batch_size=1, accumulation=1, max_steps=1, **options
    )  # fmt: skip
    run_train(settings, Silent())
    saved = AutoTokenizer.from_pretrained(tmp_path)
    ids = saved.apply_chat_template(
        [user("2 + 2?")], add_generation_prompt=True, return_dict=False
    )  # fmt: skip
    (row,) = rows(made)
    assert ids == row["prompt_ids"]
    assert saved.decode(ids).startswith("Own. ")


def test_a_manifest_without_a_template_of_the_users_does_not_mention_one(made, cache):
    assert manifests.read(made).reference.chat_template in (OWN, "own")
    reference = manifests.read(cache).reference
    assert reference.chat_template is None
    assert "chat_template" not in reference.model_dump(mode="json")
