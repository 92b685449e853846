"""Who may import whom, read from the source text alone; an import inside a function counts like any other."""

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
JAX = ("jax", "jaxlib", "flax", "optax", "orbax")
PARTS = (
    "accounting",
    "data",
    "per_example",
    "privacy",
    "models",
    "training",
    "eval",
    "report",
    "experiment",
    "config",
    "errors",
    "console",
    "bench",
    "dp",
    "inference",
    "conversion",
    "replacing",
    "recipes",
    "study",
)


def parts(*names: str) -> tuple[str, ...]:
    return tuple(f"jaxcxr.{name}" for name in names)


ABOVE_ALL = ("scripts", "tests", "notebooks")
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "jaxcxr.errors": (*JAX, *parts(*(part for part in PARTS if part != "errors"))),
    "jaxcxr.replacing": (*JAX, *parts(*(part for part in PARTS if part != "replacing"))),
    "jaxcxr.accounting": (*JAX, *parts(*(part for part in PARTS if part not in ("accounting", "errors")))),
    "jaxcxr.config": (*JAX, *parts(*(part for part in PARTS if part not in ("config", "errors")))),
    "jaxcxr.console": (*JAX, *parts(*(part for part in PARTS if part not in ("console", "config", "errors")))),
    "jaxcxr.recipes": (*JAX, *parts(*(part for part in PARTS if part not in ("recipes", "config", "data", "errors")))),
    "jaxcxr.study": (
        *JAX,
        *parts("accounting", "data", "models", "privacy", "training", "report", "bench", "inference", "conversion"),
    ),
    "jaxcxr.data": (*JAX, *parts("accounting", "privacy", "models", "training", "eval", "report", "experiment")),
    "jaxcxr.per_example": ("flax", *parts(*(part for part in PARTS if part != "per_example"))),
    "jaxcxr.privacy": ("flax", *parts("data", "models", "training", "eval", "report", "experiment")),
    "jaxcxr.models": parts("accounting", "data", "privacy", "training", "eval", "report", "experiment"),
    "jaxcxr.training": ("flax", *parts("eval", "report", "experiment")),
    "jaxcxr.eval": (*JAX, *parts("accounting", "privacy", "models", "training", "report", "experiment")),
    "jaxcxr.eval.predict": ("flax", *parts("report", "experiment")),
    "jaxcxr.report": (*JAX, *parts("models", "training", "experiment")),
    "jaxcxr.release": ("flax", *parts("experiment")),
    "jaxcxr.audit": ("flax", *parts("experiment", "report")),
    "jaxcxr.dp": ("flax", *parts("data", "models", "training", "eval", "report", "experiment", "config", "console")),
    "jaxcxr.experiment": ("flax",),
    "jaxcxr.inference": ("flax", *parts("report", "experiment", "bench")),
    "jaxcxr.conversion": ("flax", *parts("report", "experiment")),
    "jaxcxr.bench": ("flax", *parts("data", "eval", "report", "experiment")),
    "jaxcxr.bench.networks": parts("data", "privacy", "training", "eval", "report", "experiment"),
    "scripts": ("flax", "tests"),
}
"""For a module or package (the longest name that fits counts), what it must not import."""
NO_JAX_EVEN_INDIRECTLY = parts("accounting", "errors", "replacing", "config", "console", "data", "eval", "report")

Sources = Mapping[str, str]


def read_sources() -> dict[str, str]:
    """Dotted name -> text; a package is named `a.b.__init__`, so that its relative imports resolve like a module's."""
    paths = [*(ROOT / "jaxcxr").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8") for path in paths}


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
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    return frozenset(found)


def rule_of(module: str) -> str:
    fitting = [rule for rule in FORBIDDEN if is_within(module, rule)]
    assert fitting, f"{module} belongs to no part of the plan: say in FORBIDDEN what it may not import"
    return max(fitting, key=len)


def loaded_with(name: str, sources: Sources) -> set[str]:
    """The project's modules that importing `name` runs: itself and the packages around it."""
    stem = name.split(".")
    names = {".".join(stem[:i]) for i in range(1, len(stem) + 1)}
    return {candidate for n in names for candidate in (n, f"{n}.__init__") if candidate in sources}


def direct_violations(sources: Sources) -> list[str]:
    return [
        f"{module} imports {name}"
        for module, source in sorted(sources.items())
        if module != "jaxcxr.__init__"
        for name in sorted(imports_of(module, source))
        for wrong in (*FORBIDDEN[rule_of(module)], *(ABOVE_ALL if module.startswith("jaxcxr.") else ()))
        if is_within(name, wrong)
    ]


def indirect_violations(sources: Sources) -> list[str]:
    imports = {module: imports_of(module, source) for module, source in sources.items()}
    wrong = []
    for module in sorted(sources):
        if rule_of(module) not in NO_JAX_EVEN_INDIRECTLY if module != "jaxcxr.__init__" else False:
            continue
        reached, waiting = set(), loaded_with(module, sources)
        while waiting:
            reached |= waiting
            waiting = {m for r in waiting for name in imports[r] for m in loaded_with(name, sources)} - reached
        wrong += [
            f"{module} reaches {name} through {r}" for r in sorted(reached) for name in imports[r] if name.split(".")[0] in JAX
        ]
    return wrong


def test_every_import_points_down() -> None:
    assert direct_violations(SOURCES) == []


def test_no_jax_behind_the_wall() -> None:
    assert indirect_violations(SOURCES) == []


def test_accounting_runs_without_jax() -> None:
    """In a process of its own: what its dependencies import counts too."""
    modules = [module.removesuffix(".__init__") for module in SOURCES if is_within(module, "jaxcxr.accounting")]
    assert len(modules) > 5
    loaded = (
        f"import importlib, sys\nfor m in {modules}: importlib.import_module(m)\nprint([m for m in {JAX} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_only_the_way_to_import_late() -> None:
    assert imports_of("jaxcxr.__init__", SOURCES["jaxcxr.__init__"]) == {"importlib"}


def test_the_files_are_there() -> None:
    assert {f"jaxcxr.{part}" for part in PARTS} <= {".".join(module.split(".")[:2]) for module in SOURCES}
    assert "jaxcxr.eval.predict" in SOURCES
    assert any(module.startswith("scripts.") for module in SOURCES)


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
    ("module", "statement"),
    [
        ("jaxcxr.accounting.epsilon", "import jax"),
        ("jaxcxr.accounting.epsilon", "from jaxcxr.privacy import ledger"),
        ("jaxcxr.accounting.selection", "from jaxcxr.replacing import write_json"),
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
        ("jaxcxr.training.loop", "import jaxcxr.experiment"),
        ("jaxcxr.training.step", "from flax import linen as nn"),
        ("jaxcxr.eval.metrics", "import jax"),
        ("jaxcxr.eval.evaluate", "from jaxcxr.training.plan import model_of"),
        ("jaxcxr.eval.predict", "from jaxcxr.report.tables import Run"),
        ("jaxcxr.eval.predict", "from jaxcxr.experiment import read_run"),
        ("jaxcxr.report.tables", "import importlib; importlib.import_module('jaxcxr.training.loop')"),
        ("jaxcxr.report.figures", "from jax import numpy"),
        ("jaxcxr.experiment", "import flax.linen"),
        ("jaxcxr.experiment", "from scripts import train"),
        ("jaxcxr.config", "from jaxcxr.data import findings"),
        ("scripts.train", "import flax"),
    ],
)
def test_a_wrong_import_is_seen(module: str, statement: str, template: str) -> None:
    planted = {**SOURCES, module: f"{SOURCES[module]}\n{template.format(statement)}\n"}
    assert len(direct_violations(planted)) > 0
    assert all(line.startswith(f"{module} imports ") for line in direct_violations(planted))


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.accounting.epsilon", "from jaxcxr.privacy import mechanism"),
        ("jaxcxr.eval.evaluate", "from jaxcxr.eval.predict import predict_table"),
        ("jaxcxr.report.tables", "from jaxcxr.eval import predict"),
        ("jaxcxr.report.tables", "def late():\n    from jaxcxr.privacy import mechanism"),
        ("jaxcxr.config", "import optax"),
        ("jaxcxr.__init__", "import jax"),
    ],
)
def test_jax_behind_another_module_is_seen(module: str, statement: str) -> None:
    assert indirect_violations({**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"})


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("jaxcxr.privacy.ledger", "from jaxcxr.accounting import Spending"),
        ("jaxcxr.eval.predict", "from jaxcxr.training import step"),
        ("jaxcxr.report.tables", "from jaxcxr.eval.metrics import METRICS"),
        ("jaxcxr.data.store", "from jaxtyping import Float"),
        ("jaxcxr.training.loop", "from jaxcxr.models import layers"),
        ("jaxcxr.experiment", "from jaxcxr.training import loop"),
        ("jaxcxr.data.images", "from jaxcxr.console import run"),
    ],
)
def test_a_right_import_is_left_alone(module: str, statement: str) -> None:
    planted = {**SOURCES, module: f"{SOURCES[module]}\n{statement}\n"}
    assert direct_violations(planted) == indirect_violations(planted) == []
