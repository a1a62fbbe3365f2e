"""Who may import whom: the rules of the architecture, checked on the syntax tree of every file."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PURE = ("dsi.measures.metrics", "dsi.measures.trec", "continual.measure.performance")
# what a pure module may use of ours: these two are pure themselves
PURE_HELPERS = ("dsi.errors", "dsi.seeding")
ONLY_IN = {
    "wandb": ("continual.run.tracking",),
    "accelerate": (
        "continual.run.checkpoint",
        "continual.run.docids",
        "continual.measure.evaluation",
        "continual.devices.accelerator",
        "continual.update.passes",
        "continual.devices.sharding",
        "continual.update.update",
        "continual.runs",
        "continual.stage",
        "continual.baseline",
        "continual.run.tracking",
        "continual.trainer",
        "dsi.queries.generator",
    ),
    "yaml": ("continual.config.loading",),
    "pydantic": ("continual.config.parsing", "continual.config.describe"),
    "matplotlib": ("continual.report",),
}
COMPONENTS = ("replay", "regularizers", "sharpness", "parameters", "starts", "merging")
ABOVE_COMPONENTS = ("continual.trainer", "continual.stage", "continual.train", "continual.cli")
FOLDERS = ("dsi", "continual", "data", "configs", "tests", "benchmarks", "notebooks")
HEAVY = ("bm25s", "datasets", "matplotlib", "wandb", "continual.report")
# names of a distribution on the index, where they differ from the package that it installs
MODULE_OF = {"pyyaml": "yaml", "scikit-learn": "sklearn"}


@dataclass(frozen=True)
class Import:
    """``target`` is the dotted name that ``module`` imports at ``line``."""

    module: str
    target: str
    line: int
    at_start: bool
    """Whether it happens when the module is imported, not later inside a function."""


def module_name(path: Path) -> str:
    """``dsi/docids/__init__.py`` -> ``dsi.docids``."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, path: Path) -> Iterator[Import]:
    """Every import of a file: relative, in functions, under TYPE_CHECKING, by import_module."""
    module = module_name(path)
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]

    def visit(node: ast.AST, at_start: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, at_start)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:  # `from dsi import trie` imports a module, too
                yield Import(module, f"{base}.{alias.name}", node.lineno, at_start)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("import_module", "__import__") and node.args:
                name = node.args[0]
                if isinstance(name, ast.Constant) and isinstance(name.value, str):
                    yield Import(module, name.value, node.lineno, at_start)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for field, children in ast.iter_fields(node):
            later = (inside and field == "body") or (
                isinstance(node, ast.If)
                and field == "body"
                and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING"
            )
            for child in children if isinstance(children, list) else [children]:
                if isinstance(child, ast.AST):
                    yield from visit(child, at_start and not later)

    yield from visit(ast.parse(source), True)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def broken_rules(found: Import, dependencies: set[str], optional: set[str]) -> Iterator[str]:
    """The rules that one import breaks."""
    module, target = found.module, found.target
    top = target.partition(".")[0]
    standard = top in sys.stdlib_module_names
    installed = within(module, "dsi", "continual")

    if within(module, "dsi") and within(target, "continual"):
        yield "dsi never imports continual"
    if within(target, "data") and not within(module, "data"):
        yield "nothing imports data"
    if within(target, *FOLDERS[3:]) and not (top == "benchmarks" == module.partition(".")[0]):
        yield "only dsi and continual are installed: nothing imports other folders of the checkout"
    if module in PURE and not (
        standard or within(target, "numpy", *PURE_HELPERS, *PURE) or within(target, "__future__")
    ):
        yield f"{', '.join(PURE)} use the standard library and numpy"
    for package, homes in ONLY_IN.items():
        if installed and within(target, package) and not within(module, *homes):
            yield f"{package} only in {', '.join(homes)}"
    for family in COMPONENTS:
        if within(module, f"continual.{family}") and within(target, *ABOVE_COMPONENTS):
            yield f"components ({family}) never import {', '.join(ABOVE_COMPONENTS)}"
    drawing = within(module, "continual.report")  # nothing else, and itself imported late
    if found.at_start and within(target, *HEAVY) and not drawing:
        yield f"{', '.join(HEAVY)} are imported inside the functions that use them"
    known = standard or top in FOLDERS or top in dependencies
    if installed and not known and (found.at_start or top not in optional):
        yield "a package is a dependency of pyproject.toml, or an extra and imported where used"


def declared(pyproject: Path) -> tuple[set[str], set[str]]:
    """Importable names of the dependencies and of all extras."""
    project = tomllib.loads(pyproject.read_text("utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        plain = [re.split(r"[^\w.-]", text, maxsplit=1)[0].lower() for text in requirements]
        return {MODULE_OF.get(name, name).replace("-", "_") for name in plain}

    extras = [text for group in project["optional-dependencies"].values() for text in group]
    return names(project["dependencies"]), names(extras)


def violations(root: Path, dependencies: set[str], optional: set[str]) -> list[str]:
    """One line per broken rule, ``FILE:LINE: rule (imported name)``."""
    lines = []
    for folder in ("dsi", "continual", "data", "benchmarks"):
        for path in sorted((root / folder).rglob("*.py")):
            relative = path.relative_to(root)
            for found in imports(path.read_text("utf-8"), relative):
                for rule in broken_rules(found, dependencies, optional):
                    lines.append(f"{relative}:{found.line}: {rule} (imports {found.target})")
    return list(dict.fromkeys(lines))


def test_imports_follow_the_architecture(repository):
    dependencies, optional = declared(repository / "pyproject.toml")
    assert {"torch", "yaml", "huggingface_hub"} <= dependencies
    assert violations(repository, dependencies, optional) == []


def test_no_module_is_named_after_a_library(repository):
    dependencies, optional = declared(repository / "pyproject.toml")
    taken = {*sys.stdlib_module_names, *dependencies, *optional, "evaluate", "peft"}
    names = {
        path.relative_to(repository): path.stem
        for folder in ("dsi", "continual", "data", "benchmarks")
        for path in (repository / folder).rglob("*.py")
    }
    assert [str(path) for path, name in names.items() if name in taken] == []


@pytest.mark.parametrize("module", [*PURE, "continual.cli"])
def test_light_modules_load_nothing_heavy(repository, module):
    code = f"import sys, {module}; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    loaded = set(output.stdout.split())
    assert module in loaded
    assert loaded.isdisjoint({"torch", "transformers", "pyarrow", "pandas", "scipy", *HEAVY})


DEPENDENCIES = {"torch", "numpy", "yaml", "pydantic", "accelerate", *HEAVY}
PLANTED = {
    "dsi/index.py": ("from continual.stream.stream import Stream", "dsi never imports continual"),
    "dsi/search/trie.py": ("def f():\n    import continual", "dsi never imports continual"),
    "dsi/model/dsi_model.py": (
        "import importlib\nimportlib.import_module('continual')",
        "dsi never",
    ),
    "continual/stream/stream.py": ("from data.squad import read", "nothing imports data"),
    "continual/train.py": ("from tests.conftest import REPOSITORY", "only dsi and continual"),
    "dsi/measures/trec.py": (
        "from dsi.corpus.corpus import Corpus",
        "dsi.measures.metrics, dsi.measures.trec",
    ),
    "dsi/measures/metrics.py": ("from . import model", "dsi.measures.metrics, dsi.measures.trec"),
    "continual/measure/performance.py": ("import torch", "use the standard library and numpy"),
    "continual/trainer.py": ("def f():\n    import wandb", "wandb only in continual.run.tracking"),
    "dsi/search/beam_search.py": ("import accelerate.utils", "accelerate only in"),
    "continual/replay/none.py": ("from ..trainer import train", "components (replay) never"),
    "continual/config/rules.py": ("import pydantic", "pydantic only in continual.config.parsing"),
    "dsi/settings.py": ("def f():\n    import pydantic", "pydantic only in continual.config.p"),
    "continual/config/registry.py": ("import yaml", "yaml only in continual.config.loading"),
    "continual/measure/evaluation.py": (
        "def f():\n    import matplotlib.figure",
        "matplotlib only in",
    ),
    "continual/runs.py": ("from continual.report import figures", "inside the functions that use"),
    "dsi/corpus/corpus.py": ("class C:\n    import datasets", "inside the functions that use them"),
    "dsi/baselines/dense.py": ("import sentence_transformers", "a package is a dependency"),
    "dsi/baselines/sparse.py": ("def f():\n    import unheard_of", "a package is a dependency"),
    "dsi/text/tokens.py": ("import optional_one", "an extra and imported where used"),
    "benchmarks/speed.py": ("import data.squad", "nothing imports data"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(tmp_path, name):
    source, rule = PLANTED[name]
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(f"\n{source}\n", encoding="utf-8")
    found = violations(tmp_path, DEPENDENCIES, {"optional_one"})
    line = 1 + len(source.splitlines())
    assert len(found) == 1
    assert found[0].startswith(f"{name}:{line}: ")
    assert rule in found[0]


ALLOWED = {
    "continual/cli.py": "from dsi.index import SearchIndex\nfrom continual import trainer",
    "continual/config/loading.py": "import yaml",
    "continual/run/tracking.py": "def f():\n    import wandb",
    "continual/report/page.py": "import matplotlib\nfrom continual.report import figures",
    "continual/runs.py": "from typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from continual.report import figures\n"
    "def f():\n    from continual.report import figures",
    "dsi/measures/trec.py": "import math\nimport numpy as np\nfrom dsi.errors import UserError",
    "dsi/baselines/dense.py": "def f():\n    import optional_one",
    "data/squad.py": "from data import _writing\nfrom dsi.errors import UserError",
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_the_rules_allow_passes(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(ALLOWED[name], encoding="utf-8")
    assert violations(tmp_path, DEPENDENCIES, {"optional_one"}) == []


def test_relative_imports_are_resolved():
    source = "from . import a\nfrom .b import c\nfrom ..d import e"
    path = Path("continual/replay/none.py")
    assert [found.target for found in imports(source, path)] == [
        "continual.replay.a",
        "continual.replay.b.c",
        "continual.d.e",
    ]
    init = Path("continual/replay/__init__.py")
    assert next(imports("from . import a", init)).target == "continual.replay.a"
