"""Models and data of the hub are read at one commit, which the cache records.

No hub can be reached here: what stands in for it answers the calls of its client, and keeps what it
was asked for.
"""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from reflogp.data_schemas import manifest as manifests
from reflogp.data_schemas import plan_record
from reflogp.data_schemas.errors import InputError
from reflogp.data_schemas.manifest import Manifest
from reflogp.pipeline.console import TerminalConsole
from reflogp.pipeline.look import run_dry
from reflogp.pipeline.resolve import resolve_start
from reflogp.pipeline.run import run_precompute, run_share, run_verify
from reflogp.pipeline.summary import inspect_rows
from reflogp.stages.model.loading import hub_commit
from reflogp.stages.precompute.config import PrecomputeConfig
from tests.caches import rows_by_id

OLD, NEW = "a" * 40, "b" * 40


class Hub:
    """A model and a data set, each with a branch `main` that can move."""

    def __init__(self, folder: Path, checkpoint: Path, lines: list[str]) -> None:
        self.main = OLD
        self.asked: list[tuple[Any, ...]] = []
        self.patterns: list[list[str]] = []
        self._folder, self.checkpoint = folder, checkpoint
        self._rows = [json.loads(line) for line in lines]

    def commit(self, revision: str | None) -> str:
        commit = {None: self.main, "main": self.main, "old": OLD}.get(revision, revision)
        if commit not in (OLD, NEW):
            raise ValueError(f"no revision {revision}")
        return str(commit)

    def model(self, name: str, revision: str | None = None, **more: Any) -> str:
        self.asked.append(("model", name, revision))
        self.patterns.append(more["allow_patterns"])
        folder = self._folder / "models--owner--model" / "snapshots" / self.commit(revision)
        for path in filter(Path.is_file, self.checkpoint.rglob("*")):
            inside = path.relative_to(self.checkpoint)
            if any(fnmatch(str(inside), pattern) for pattern in more["allow_patterns"]):
                (folder / inside).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, folder / inside)
        return str(folder)

    def info(self, name: str, revision: str | None = None) -> SimpleNamespace:
        return SimpleNamespace(sha=self.commit(revision))

    def data(self, path: str, **options: Any) -> datasets.IterableDataset:
        self.asked.append(("data", path, options["revision"], options["name"]))
        rows = self._rows[:6] if options["revision"] == OLD else self._rows[:9]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()


@pytest.fixture
def hub(tmp_path, checkpoint, few_preferences, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub", checkpoint, few_preferences.read_text().splitlines())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.model)
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda _, *a, **k: made.info(*a, **k)
    )
    monkeypatch.setattr(datasets, "load_dataset", made.data)
    return made


@pytest.fixture
def settings(tmp_path) -> PrecomputeConfig:
    return PrecomputeConfig(
        reference="owner/model", data="owner/data", cache=tmp_path / "cache", max_length=192,
        engine="transformers", verify_sample=0,
    )  # fmt: skip


def test_data_are_read_at_the_commit_that_the_fingerprint_names(hub, settings, console):
    first = run_precompute(settings, console)
    assert [asked for asked in hub.asked if asked[0] == "data"] == [
        ("data", "owner/data", OLD, None)
    ]
    assert (first.inputs.data, first.source.commit, first.source.config) == (OLD, OLD, None)
    assert first.reference.commit == OLD
    assert run_precompute(settings, console) == first
    shown = dict(inspect_rows(settings.cache, first))
    assert shown["reference"] == f"owner/model at {OLD}"
    assert shown["source"].startswith(f"owner/data at {OLD}, split train")
    hub.main = NEW
    second = run_precompute(settings, console)
    assert second.inputs.differences(first.inputs) == ["data"]
    assert second.source.commit == NEW
    assert len(rows_by_id(settings.cache)) > first.counts.rows
    at_old = {"data_revision": "old", "revision": "old"}
    third = run_precompute(settings.model_copy(update=at_old), console)
    assert third.inputs == first.inputs
    assert hub.asked[-2:] == [("model", "owner/model", "old"), ("data", "owner/data", OLD, None)]


def test_a_plan_holds_the_commit_for_the_jobs_that_find_it(hub, settings, console):
    run_share(settings.model_copy(update={"share": "1/2", "shard_tokens": 500}), console)
    plan = plan_record.read(next(settings.cache.glob("plan-*")))
    assert plan is not None
    assert plan.config["data_revision"] == OLD


def test_a_configuration_is_read_and_part_of_the_fingerprint(hub, settings, console):
    plain = run_precompute(settings, console)
    assert "data_config" not in plain.rules
    some = run_precompute(settings.model_copy(update={"data_config": "helpful"}), console)
    assert hub.asked[-1] == ("data", "owner/data", OLD, "helpful")
    assert some.inputs.differences(plain.inputs) == ["rules"]
    assert some.source.config == some.rules["data_config"] == "helpful"


def test_the_reference_is_found_again_at_its_commit(hub, settings, console):
    manifest = run_precompute(settings, console)
    shutil.rmtree(hub._folder)  # another machine
    hub.main = NEW
    found = resolve_start(None, None, manifest, "reference")
    assert hub.asked[-1] == ("model", "owner/model", OLD)
    assert found.folder.name == OLD
    run_verify(settings.cache, 2, None, 0, console)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"revision": "nowhere"}, r"--reference owner/model: .*at the revision nowhere"),
        ({"data_revision": "nowhere"}, r"--data owner/data: .*at the revision nowhere"),
    ],
)
def test_a_revision_that_is_not_there_is_named(hub, settings, console, change, message):
    with pytest.raises(InputError, match=message):
        run_precompute(settings.model_copy(update=change), console)
    assert not settings.cache.exists()


def test_a_dry_run_downloads_no_weights(hub, settings):
    run_dry(settings, TerminalConsole())
    assert hub.patterns.pop() == ["*.json", "*.model", "*.txt", "*.jinja"]
    assert not settings.cache.exists()
    run_share(settings, TerminalConsole())
    assert hub.patterns.pop()[4:] == ["*.safetensors"]
    run_share(settings.model_copy(update={"trust_remote_code": True}), TerminalConsole())
    assert hub.patterns.pop()[4:] == ["*.safetensors", "*.py"]


def test_pickled_weights_are_downloaded_where_there_are_no_others(
    hub, settings, checkpoint, tmp_path, console
):
    safe = run_precompute(settings, console)
    both = shutil.copytree(checkpoint, tmp_path / "both")
    weights = load_file(both / "model.safetensors")
    parts = {f"pytorch_model-{i}.bin": [*weights][i::2] for i in range(2)}
    for file, names in parts.items():
        torch.save({name: weights[name] for name in names}, both / file)
    places = {name: file for file, names in parts.items() for name in names}
    (both / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )
    (both / "training_args.bin").write_bytes(b"more than weights")
    hub.checkpoint, hub.main = both, NEW
    assert run_precompute(settings, console).inputs.differences(safe.inputs) == ["data"]
    assert not [*tmp_path.glob(f"hub/**/{NEW}/*.bin")]

    (both / "model.safetensors").unlink()
    shutil.rmtree(tmp_path / "hub")
    found = run_precompute(settings.model_copy(update={"dtype": "auto"}), console)
    assert hub.asked[-2:-1] == [("model", "owner/model", NEW)]
    assert hub.patterns[-1] == ["pytorch_model*.bin"]
    assert len([*tmp_path.glob(f"hub/**/{NEW}/*.bin")]) == 2
    assert found.inputs.differences(safe.inputs) == ["weights", "data"]
    assert found.reference.commit == NEW


def test_a_folder_of_a_repository_is_a_checkpoint(hub, settings, checkpoint, tmp_path, console):
    hub.checkpoint = tmp_path / "repository"
    shutil.copytree(checkpoint, hub.checkpoint / "steps" / "100")
    shutil.copytree(checkpoint, hub.checkpoint / "steps" / "200")
    inside = settings.model_copy(update={"reference": "owner/model/steps/100", "revision": "old"})
    found = run_precompute(inside, console)
    assert Path(found.reference.path).parts[-3:] == (OLD, "steps", "100")
    assert found.reference.commit == OLD
    assert not [*tmp_path.glob("hub/**/200")]
    shutil.rmtree(tmp_path / "hub")  # another machine
    hub.main = NEW
    assert hub_commit(resolve_start(None, None, found, "reference").folder) == OLD
    for name in ("owner/model/steps/300", "owner/model/..", "owner/", "owner/model/./steps"):
        with pytest.raises(InputError, match=r"no folder steps/300|not a Hub id"):
            run_precompute(inside.model_copy(update={"reference": name}), console)


def test_what_is_not_on_the_hub_has_no_revisions(
    settings, checkpoint, few_preferences, console, monkeypatch
):
    here = {"reference": str(checkpoint), "data": str(few_preferences)}
    for option in ("revision", "data_revision", "data_config"):
        given = settings.model_copy(update=here | {option: "main"})
        with pytest.raises(InputError, match=f"--{option.replace('_', '-')} main"):
            run_precompute(given, console)


def test_a_cache_without_commits_still_reads(cache):
    found = json.loads((cache / manifests.FILE_NAME).read_text())
    for part, names in {
        "reference": ("commit", "adapter_commit"),
        "source": ("commit", "config"),
    }.items():
        for name in names:
            assert found[part].pop(name) is None
    assert Manifest.model_validate(found).reference.commit is None
