"""A checkpoint's own Python code runs where it is trusted, in every stage, and nowhere else."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas.cache_shard import read_shard
from reflogp.data_schemas.errors import InputError
from reflogp.pipeline.decoding import decoder_of
from reflogp.pipeline.fingerprint import model_inputs
from reflogp.pipeline.run import run_precompute, run_train, run_verify
from reflogp.stages.model.checkpoint import Checkpoint
from reflogp.stages.precompute.config import PrecomputeConfig
from reflogp.stages.train.config import TrainConfig
from tests.truth import Truth

# a Llama whose logits are halved
MODEL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *arguments, **named):
        output = super().forward(*arguments, **named)
        output.logits = output.logits / 2
        return output
"""
TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies code to this folder before it runs; nobody is there to be asked."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.fixture
def own(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with code of its own, for the model and for the tokenizer."""
    folder = shutil.copytree(checkpoint, tmp_path / "own")
    (folder / "own_model.py").write_text(MODEL)
    classes = {"AutoConfig": "own_model.OwnConfig",
               "AutoModelForCausalLM": "own_model.OwnForCausalLM"}  # fmt: skip
    edit(folder / "config.json", model_type="own", architectures=["OwnForCausalLM"],
         auto_map=classes)  # fmt: skip
    (folder / "own_tokenizer.py").write_text(TOKENIZER)
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer",
         auto_map={"AutoTokenizer": [None, "own_tokenizer.OwnTokenizer"]})  # fmt: skip
    return folder


def settings(reference: Path, data: Path, cache: Path, *, trusted: bool) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference=str(reference), data=str(data), cache=cache, engine="transformers",
        max_length=192, trust_remote_code=trusted,
    )  # fmt: skip


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_code_is_refused_in_one_line_and_nobody_is_asked(
    part, own, checkpoint, few_preferences, tmp_path, command
):
    plain = "config.json" if part == "tokenizer" else "tokenizer_config.json"
    shutil.copy(checkpoint / plain, own / plain)
    said = command(
        "precompute", "--reference", own, "--data", few_preferences, "--cache", tmp_path / "cache",
        "--engine", "transformers",
    )  # fmt: skip
    assert said.code == 2
    assert "--trust-remote-code if you trust it" in " ".join(said.stderr.split())
    assert not [*tmp_path.rglob("ran")]
    assert not (tmp_path / "cache").exists()


def scored(cache: Path) -> Iterator[tuple[list[int], list[int], list[float]]]:
    for shard in manifests.read(cache).shards:
        for row in read_shard(cache / shard.file).to_pylist():
            yield row["prompt_ids"], row["chosen_ids"], row["ref_chosen_logps"]


def test_trusted_code_scores_verifies_and_trains(
    own, checkpoint, few_preferences, tmp_path, console
):
    config = settings(own, few_preferences, tmp_path / "cache", trusted=True)
    manifest = run_precompute(config, console)
    assert [*tmp_path.rglob("ran")]
    assert manifest.reference.trust_remote_code
    halved = AutoModelForCausalLM.from_pretrained(checkpoint)
    halved.lm_head.weight.data /= 2
    truth = Truth(halved)
    for prompt, chosen, logps in scored(config.cache):
        np.testing.assert_allclose(logps, truth.logps(prompt, chosen), atol=1e-4, rtol=0)

    # a manifest is no permission
    train = TrainConfig(cache=config.cache, output=tmp_path / "trained", max_steps=1, lora_r=0)
    with pytest.raises(InputError, match=r"Give --trust-remote-code"):
        run_train(train, console)
    with pytest.raises(InputError, match=r"Give --trust-remote-code"):
        run_verify(config.cache, 2, None, 0, console)
    assert decoder_of(manifest, console) is None
    assert "which this command does not run" in console.warned[-1]
    assert run_verify(config.cache, 2, None, 0, console, trusted=True).passed
    trusting = train.model_copy(update={"trust_remote_code": True})
    assert run_train(trusting, console).first.loss == pytest.approx(0.693147, abs=1e-5)
    merging = trusting.model_copy(
        update={"output": tmp_path / "merged", "lora_r": 4, "merge": True}
    )
    assert run_train(merging, console).first.loss == pytest.approx(0.693147, abs=1e-5)
    for output in (train.output, merging.output):  # with the code that they need
        model = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
        tokenizer = AutoTokenizer.from_pretrained(output, trust_remote_code=True)
        assert (type(model).__name__, type(tokenizer).__name__) == (
            "OwnForCausalLM",
            "OwnTokenizer",
        )


def test_the_fingerprint_covers_code_that_can_run(own, checkpoint):
    plain, unused, trusted = (
        model_inputs(Checkpoint(folder, None, "float32", allowed))
        for folder, allowed in ((checkpoint, True), (own, False), (own, True))
    )
    assert plain == model_inputs(Checkpoint(checkpoint, None, "float32"))
    differing = {name for name in trusted if trusted[name] != unused[name]}
    assert differing == {"architecture", "tokenizer"}
    with (own / "own_model.py").open("a") as file:
        file.write("# changed\n")
    again = model_inputs(Checkpoint(own, None, "float32", trusted=True))
    assert again["architecture"] != trusted["architecture"]
    assert model_inputs(Checkpoint(own, None, "float32")) == unused


def test_code_of_another_repository_is_refused(own, few_preferences, tmp_path, console):
    edit(own / "config.json", auto_map={"AutoConfig": "someone/else--own_model.OwnConfig"})
    with pytest.raises(InputError, match=r"another repository: someone/else--own_model"):
        run_precompute(settings(own, few_preferences, tmp_path / "c", trusted=True), console)
