"""The tree reads as the data flow: imports run one way, and no folder or file grows out of hand."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From the ground up: a module imports from its own room and from the rooms before it.
ROOMS = [
    "data_schemas.errors",
    "data_schemas.record",
    "data_schemas.files",
    "data_schemas",
    "stages",
    "stages.cache",
    "stages.model",
    "stages.forward",
    "stages.precompute.share_and_actors",
    "stages.precompute.config",
    "stages.precompute.score.engines",
    "stages.precompute.job",
    "stages.precompute.read",
    "stages.precompute.tokens",
    "stages.precompute.plan",
    "stages.precompute.score",
    "stages.precompute.score.ray",
    "stages.precompute.score.local",
    "stages.precompute.seal",
    "stages.precompute",
    "stages.train.losses",
    "stages.train.schedule",
    "stages.train.config",
    "stages.train.data",
    "stages.train.model",
    "stages.train.result.unfinished",
    "stages.train.job",
    "stages.train.loop",
    "stages.train.advice",
    "stages.train.result",
    "stages.train",
    "stages.doctor",
    "stages.estimate",
    "stages.report",
    "stages.diagnose",
    "stages.filter",
    "stages.export",
    "stages.interop",
    "pipeline",
    "reflogp",
]
LONGEST = 300  # lines of a file
MOST = 13  # modules of a folder of stages/


@cache
def modules() -> dict[str, Path]:
    """Every module, by its name below `reflogp`."""
    found = {}
    for top in ("data_schemas", "stages", "pipeline", "reflogp"):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The modules of ours that a module imports, at its top or inside a function."""
    named: set[str] = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: {ast.unparse(node)}: write the whole name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            known = [name for name in whole if name.removeprefix("reflogp.") in modules()]
            named |= set(known) or {str(node.module)}
    for name in named:
        top = name.split(".")[0]
        assert top not in {"stages", "pipeline", "data_schemas"}, f"{module}: reflogp.{name}"
    ours = {name.removeprefix("reflogp.") for name in named if name.startswith("reflogp.")}
    return frozenset(ours & modules().keys())


def room(module: str) -> str:
    """The longest entry of ROOMS that a module lies in."""
    while module not in ROOMS:
        module = module.rpartition(".")[0]
    return module


def test_imports_never_run_back():
    back = [
        f"{module} -> {other}"
        for module in modules()
        for other in sorted(imports(module))
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert not back


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for other in sorted(imports(module)):
                visit(other, (*trail, module))
            done.add(module)

    for module in modules():
        visit(module, ())


def test_no_file_grows_out_of_hand():
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in modules().items()
    }
    assert not {module: lines for module, lines in lengths.items() if lines > LONGEST}


def test_a_folder_of_stages_is_small_and_says_what_it_is_for():
    folders = {path.parent for path in modules().values() if path.name == "__init__.py"}
    assert {path.parent for path in modules().values()} == folders
    for folder in folders:
        face = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(face)), f"{folder}: what comes in, and what goes out?"
        if folder.is_relative_to(ROOT / "stages"):
            assert len([*folder.glob("*.py")]) - 1 <= MOST, folder
