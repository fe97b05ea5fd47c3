"""What `pip install` brings: one package, whole, which other people's modules do not break."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests import caches

ROOT = Path(__file__).parents[1]
ROOTS = ("reflogp", "pipeline", "stages", "data_schemas")
PACKAGED = {".py", ".jinja", ".js", ".css", ".typed"}
HOSTILE = "raise RuntimeError('not the module that reflogp means')\n"
# What takes long to import.
HEAVY = {
    "torch",
    "transformers",
    "pyarrow",
    "pydantic",
    "numpy",
    "pandas",
    "datasets",
    "trl",
    "vllm",
}


def done(command: list[str], folder: Path, *, path: Path | None = None) -> str:
    """What a command prints that ends well, run in `folder` with `path` in front of sys.path."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert not found.returncode, found.stdout + found.stderr
    return found.stdout


def build(kind: str, sources: Path, folder: Path) -> Path:
    """The sdist or the wheel of a source tree."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build({str(folder)!r}))"
    return folder / done([sys.executable, "-c", code], sources).splitlines()[-1]


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The files that a checkout has, without what was built or installed in it."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ROOTS:
        shutil.copytree(
            ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    return build("wheel", sources, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with nothing in it but the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    done([sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(wheel)],
         folder)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A project of somebody else, with modules that are called as parts of reflogp are."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "stages").mkdir()
    for name in ("pipeline.py", "data_schemas.py", "stages/__init__.py"):
        (folder / name).write_text(HOSTILE)
    return folder


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    expected = {
        str(Path("reflogp") / path.relative_to(ROOT / "reflogp" if top == "reflogp" else ROOT))
        for top in ROOTS
        for path in (ROOT / top).rglob("*")
        if path.suffix in PACKAGED and "__pycache__" not in path.parts
    }
    assert {
        "reflogp/py.typed",
        "reflogp/pipeline/cli.py",
        "reflogp/stages/report/page.css",
    } <= expected
    assert {name for name in content(wheel) if ".dist-info/" not in name} == expected


def test_a_wheel_built_from_the_sdist_is_the_same(sources, wheel, tmp_path):
    sdist = build("sdist", sources, tmp_path)
    with tarfile.open(sdist) as file:
        file.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "wheel").mkdir()
    assert content(build("wheel", unpacked, tmp_path / "wheel")) == content(wheel)


def test_one_package_and_its_command_are_installed(installed):
    info, *others = sorted(path.name for path in installed.glob("*.dist-info"))
    assert not others
    assert {path.name for path in installed.iterdir()} == {"reflogp", "bin", info}
    assert [path.name for path in (installed / "bin").iterdir()] == ["reflogp"]
    names = (installed / info / "top_level.txt").read_text().split()
    assert names == ["reflogp"]


def test_it_is_imported_from_where_it_is_installed(installed, hostile):
    code = "import json, sys, reflogp; print(json.dumps([reflogp.__file__, sys.path]))"
    place, path = json.loads(done([sys.executable, "-c", code], hostile, path=installed))
    assert place == str(installed / "reflogp" / "__init__.py")
    assert ROOT not in {(hostile / entry).resolve() for entry in path}


def test_an_editable_installation_finds_all_three_parts(tmp_path):
    code = "import reflogp, reflogp.pipeline, reflogp.stages, reflogp.data_schemas as d; " \
           "print(reflogp.__path__[0], d.__path__[0])"  # fmt: skip
    package, schemas = map(Path, done([sys.executable, "-c", code], tmp_path).split())
    assert (package.parent / "pyproject.toml").is_file()
    assert schemas.resolve() == package.parent / "data_schemas"


@pytest.mark.parametrize(
    ("code", "but"),
    [
        ("import reflogp; dir(reflogp)", set()),
        ("import reflogp; reflogp.InputError, reflogp.ReflogpError", set()),
        # the options are read from pydantic's models, and paths and columns from Arrow's types
        ("import reflogp.pipeline.cli", {"pydantic", "pyarrow", "numpy"}),
    ],
    ids=["import", "errors", "command"],
)
def test_heavy_libraries_are_imported_only_when_they_are_used(installed, hostile, code, but):
    code = f"import json, sys; {code}; print(json.dumps([*sys.modules]))"
    found = json.loads(done([sys.executable, "-c", code], hostile, path=installed))
    assert {name.partition(".")[0] for name in found} & HEAVY <= but


def test_the_time_of_the_import_is_told(installed, hostile):
    command = [sys.executable, "-X", "importtime", "-c", "import reflogp"]
    found = subprocess.run(
        command, cwd=hostile, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True
    )
    (line,) = re.findall(r"import time: .* (\d+) \| reflogp$", found.stderr, re.MULTILINE)
    print(f"import reflogp: {int(line) / 1000:.1f} ms")


def precomputed(installed: Path, hostile: Path, cache: str, *options: str) -> Path:
    done([
        sys.executable, "-m", "reflogp", "precompute", "--reference=MODEL", "--data=few.jsonl",
        f"--cache={cache}", "--max-length=192", "--verify-sample=0", *options,
    ], hostile, path=installed)  # fmt: skip
    return hostile / cache


@pytest.fixture(scope="module")
def cache(installed, hostile, checkpoint, few_preferences) -> Path:
    shutil.copytree(checkpoint, hostile / "MODEL")
    lines = few_preferences.read_text(encoding="utf-8").splitlines()[:4]
    (hostile / "few.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return precomputed(installed, hostile, "cache", "--engine=transformers")


@pytest.mark.slow
def test_both_stages_run_beside_modules_of_the_same_names(installed, hostile, cache):
    done([
        sys.executable, "-m", "reflogp", "train", f"--cache={cache}", "--output=model",
        "--max-steps=1", "--batch-size=1", "--accumulation=1",
    ], hostile, path=installed)  # fmt: skip
    assert (hostile / "model" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.vllm
def test_vllm_starts_there_and_finds_the_plugin(installed, hostile, cache):
    scored = precomputed(
        installed, hostile, "vllm", "--engine=vllm", "--method=pooler", "--dtype=float32"
    )
    expected, found = caches.rows_by_id(cache), caches.rows_by_id(scored)
    assert expected.keys() == found.keys()
    for key, row in expected.items():
        np.testing.assert_allclose(
            found[key]["ref_chosen_logps"], row["ref_chosen_logps"], atol=1e-3
        )
