"""Who may import whom, read from the source text alone; an import inside a function counts like any other."""

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
FLOORS = (
    ("errors",),
    ("yaml_files",),
    ("accounting", "atomic", "config", "per_example", "signals"),
    ("config_files", "digests", "launch"),
    ("run_folder",),
    ("records",),
    ("data", "models", "privacy"),
    ("dp", "training"),
    ("inference",),
    ("audit", "bench", "eval"),
    ("report",),
    ("release",),
    ("workflows",),
    ("cli",),
    ("__main__", "notebooks", "scripts"),
    ("tests",),
)
"""Rooms from the ground up. A module imports its own room and the floors below, never a room beside it or above."""
NO_JAX = (
    "errors",
    "yaml_files",
    "accounting",
    "atomic",
    "signals",
    "config",
    "config_files",
    "digests",
    "launch",
    "run_folder",
    "records",
    "data",
    "eval",
    "report",
)
"""Rooms that reach no JAX, even indirectly, so that tables and pages are made where there is none."""
RUNS_THE_NETWORK = "jaxcxr.eval.predict"
"""The one module of those rooms that needs it."""
NO_FLAX = ("per_example", "privacy", "dp", "training", "audit", "release", "workflows", "cli", "scripts")
"""Rooms that use JAX and know no layer."""
APART = {
    "data": ("accounting", "run_folder", "records"),
    "dp": ("config", "config_files", "run_folder", "data", "models"),
    "per_example": ("errors",),
    "privacy": ("config", "config_files", "run_folder"),
}
"""Rooms that can be read and used without others below them."""

Sources = Mapping[str, str]


def read_sources() -> dict[str, str]:
    """Dotted name -> text; a package is named `a.b.__init__`, so that its relative imports resolve like a module's."""
    found = {}
    for base, top in ((ROOT / "src", "jaxcxr"), (ROOT, "scripts"), (ROOT, "tests"), (ROOT, "notebooks")):
        for path in (base / top).rglob("*.py"):
            found[".".join(path.relative_to(base).with_suffix("").parts)] = path.read_text(encoding="utf-8")
    return found


SOURCES = read_sources()


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


@functools.cache
def imports_of(module: str, source: str) -> frozenset[str]:
    """Everything that the text names in an import, at any depth; `from a import b` names both `a` and `a.b`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if (
                called in ("import_module", "__import__")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                found.add(str(node.args[0].value))
    return frozenset(found)


def room_of(name: str) -> str | None:
    """The room of a module of ours; None for other packages and for the package itself."""
    stem = name.split(".")
    if stem[0] == "jaxcxr":
        return stem[1] if len(stem) > 1 and stem[1] != "__init__" else None
    return stem[0] if stem[0] in ("notebooks", "scripts", "tests") else None


def floor_of(room: str) -> int:
    for level, rooms in enumerate(FLOORS):
        if room in rooms:
            return level
    raise AssertionError(f"{room} stands on no floor: say in FLOORS what it may import")


def is_wrong(module: str, name: str) -> bool:
    """Whether `module` must not import `name`."""
    room, other, library = room_of(module), room_of(name), name.split(".")[0]
    if room is None:
        return False
    if library in JAX:
        return (room in NO_JAX and module != RUNS_THE_NETWORK) or (library == "flax" and room in NO_FLAX)
    if other is None or other == room:
        return False
    return other in APART.get(room, ()) or floor_of(other) >= floor_of(room)


def loaded_with(name: str, sources: Sources) -> set[str]:
    """The project's modules that importing `name` runs: itself and the packages around it."""
    stem = name.split(".")
    names = {".".join(stem[:i]) for i in range(1, len(stem) + 1)}
    return {candidate for n in names for candidate in (n, f"{n}.__init__") if candidate in sources}


def direct_violations(sources: Sources) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, source in sorted(sources.items())
        for name in sorted(imports_of(module, source))
        if (name in sources or f"{name}.__init__" in sources or room_of(name) is None)
        and is_wrong(module, name)
    ]


def circles(sources: Sources) -> list[str]:
    """Modules that import each other in a circle."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        named = {m for name in imports_of(module, source) for m in (name, f"{name}.__init__") if m in sources}
        around = {
            f"{package}.__init__" for package in accumulate(module.split("."), "{}.{}".format)
        }  # `from package import module`
        graph[module] = named - around - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]
    return []


def indirect_violations(sources: Sources) -> list[str]:
    imports = {module: imports_of(module, source) for module, source in sources.items()}
    wrong = []
    for module in sorted(sources):
        if (room_of(module) not in NO_JAX and module != "jaxcxr.__init__") or module == RUNS_THE_NETWORK:
            continue
        reached, waiting = set(), loaded_with(module, sources)
        while waiting:
            reached |= waiting
            waiting = {
                m for r in waiting for name in imports[r] for m in loaded_with(name, sources)
            } - reached
        wrong += [
            f"{module} reaches {name} through {r}"
            for r in sorted(reached)
            for name in imports[r]
            if name.split(".")[0] in JAX
        ]
    return wrong


def test_every_import_points_down() -> None:
    assert direct_violations(SOURCES) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.errors", "from jaxcxr.records.chain import Chain"),
        ("jaxcxr.records.chain", "def late():\n    from jaxcxr.records import ledger"),
        ("jaxcxr.data.manifest", "import jaxcxr.data.splits"),
        ("jaxcxr.per_example.products", "from jaxcxr.per_example.sites import Site"),
    ],
)
def test_a_new_circle_is_seen(module: str, statement: str) -> None:
    assert module in circles({**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"})


def test_no_jax_behind_the_wall() -> None:
    assert indirect_violations(SOURCES) == []


def test_accounting_runs_without_jax() -> None:
    """In a process of its own: what its dependencies import counts too."""
    modules = [
        module.removesuffix(".__init__") for module in SOURCES if is_within(module, "jaxcxr.accounting")
    ]
    assert len(modules) > 5
    loaded = f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint([m for m in {JAX} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_only_the_way_to_import_late() -> None:
    assert imports_of("jaxcxr.__init__", SOURCES["jaxcxr.__init__"]) == {"importlib"}


def test_the_files_are_there() -> None:
    """A floor without a file, or a file without a floor, means that this test looks at the wrong place."""
    assert {room_of(module) for module in SOURCES} - {None} == {room for floor in FLOORS for room in floor}
    assert RUNS_THE_NETWORK in SOURCES


@pytest.mark.parametrize(
    "template",
    [
        "{0}",
        "def late():\n    {0}",
        "class A:\n    def late(self):\n        if True:\n            {0}",
        "try:\n    {0}\nexcept ImportError:\n    pass",
    ],
    ids=["top", "function", "method", "try"],
)
@pytest.mark.parametrize(
    "statement",
    ["import jax.numpy", "from jax import numpy", "import importlib; importlib.import_module('jax.numpy')"],
)
def test_an_import_is_seen_wherever_it_stands(statement: str, template: str) -> None:
    assert "jax.numpy" in imports_of("jaxcxr.data.store", template.format(statement))


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.accounting.epsilon", "import jax"),
        ("jaxcxr.accounting.epsilon", "from jaxcxr.privacy import ledger"),
        ("jaxcxr.accounting.selection", "from jaxcxr.atomic import write_json"),
        ("jaxcxr.data.store", "import jaxcxr.privacy.noise"),
        ("jaxcxr.data.store", "from jaxcxr import accounting"),
        ("jaxcxr.data.store", "import jax.numpy as jnp"),
        ("jaxcxr.data.sources.table", "from ...training import plan"),
        ("jaxcxr.data.synthetic.__init__", "from ...models import layers"),
        ("jaxcxr.privacy.clipping", "from jaxcxr.models.layers import Stem"),
        ("jaxcxr.privacy.noise", "from jaxcxr import data"),
        ("jaxcxr.privacy.noise", "import flax"),
        ("jaxcxr.models.features", "from jaxcxr.privacy import clipping"),
        ("jaxcxr.per_example.sites", "from jaxcxr.privacy import clipping"),
        ("jaxcxr.per_example.gradients", "from flax import linen"),
        ("jaxcxr.training.loop", "from jaxcxr.eval.predict import predict_table"),
        ("jaxcxr.training.loop", "import jaxcxr.workflows.experiment"),
        ("jaxcxr.training.step", "from flax import linen as nn"),
        ("jaxcxr.eval.metrics", "import jax"),
        ("jaxcxr.eval.evaluate", "from jaxcxr.training.plan import make_plan"),
        ("jaxcxr.eval.predict", "from jaxcxr.report.evaluated_runs import Run"),
        ("jaxcxr.eval.predict", "from jaxcxr.workflows.experiment import run_experiment"),
        (
            "jaxcxr.report.paper.supplementary_tables",
            "import importlib; importlib.import_module('jaxcxr.training.loop')",
        ),
        ("jaxcxr.report.figures.sweep_figures", "from jax import numpy"),
        ("jaxcxr.workflows.experiment", "import flax.linen"),
        ("jaxcxr.workflows.experiment", "from scripts import train"),
        ("jaxcxr.config", "from jaxcxr.data import findings"),
        ("jaxcxr.training.loop", "from jaxcxr.inference import load_model"),
        ("jaxcxr.training.plan", "from jaxcxr.audit import canaries"),
        ("jaxcxr.training.plan", "from jaxcxr.release import gate"),
        ("jaxcxr.models.layers", "from jaxcxr.bench import case"),
        ("jaxcxr.models.layers", "from jaxcxr.data import images"),
        ("jaxcxr.inference", "from jaxcxr.workflows.conversion import convert"),
        ("jaxcxr.inference", "from jaxcxr.eval import predict"),
        ("jaxcxr.report.run_report", "from jaxcxr.release import register"),
        ("jaxcxr.report.run_report", "from jaxcxr.workflows import experiment"),
        ("jaxcxr.release.gate", "from jaxcxr.workflows import conversion"),
        ("jaxcxr.audit.attacks", "from jaxcxr.report import run_report"),
        ("jaxcxr.bench.case", "from jaxcxr.eval import metrics"),
        ("jaxcxr.data.images", "from jaxcxr.cli.console import run"),
        ("jaxcxr.dp", "from jaxcxr.models import layers"),
        ("jaxcxr.records.ledger", "from jaxcxr.privacy import mechanism"),
        ("jaxcxr.workflows.study", "from jaxcxr.cli import console"),
        ("jaxcxr.workflows.study", "import tests.conftest"),
        ("scripts.train", "import flax"),
        ("scripts.train", "from tests import conftest"),
    ],
)
def test_a_wrong_import_is_seen(module: str, statement: str) -> None:
    planted = {**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"}
    found = direct_violations(planted) + indirect_violations(planted)
    assert any(line.startswith((f"{module} imports ", f"{module} reaches ")) for line in found)


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.accounting.epsilon", "from jaxcxr.privacy import mechanism"),
        ("jaxcxr.eval.evaluate", "from jaxcxr.eval.predict import predict_table"),
        ("jaxcxr.report.paper.supplementary_tables", "from jaxcxr.eval import predict"),
        ("jaxcxr.report.paper.supplementary_tables", "def late():\n    from jaxcxr.privacy import mechanism"),
        ("jaxcxr.config", "import optax"),
        ("jaxcxr.__init__", "import jax"),
    ],
)
def test_jax_behind_another_module_is_seen(module: str, statement: str) -> None:
    assert indirect_violations({**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"})


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.records.ledger", "from jaxcxr.accounting import Spending"),
        ("jaxcxr.eval.predict", "from jaxcxr.training import step"),
        ("jaxcxr.report.paper.supplementary_tables", "from jaxcxr.eval.metrics import METRICS"),
        ("jaxcxr.data.store", "from jaxtyping import Float"),
        ("jaxcxr.training.loop", "from jaxcxr.models import layers"),
        ("jaxcxr.workflows.experiment", "from jaxcxr.training import loop"),
        ("scripts.train", "from jaxcxr.cli.console import run"),
        ("tests.test_config", "from jaxcxr.workflows import study"),
    ],
)
def test_a_right_import_is_left_alone(module: str, statement: str) -> None:
    planted = {**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"}
    assert direct_violations(planted) == indirect_violations(planted) == []
