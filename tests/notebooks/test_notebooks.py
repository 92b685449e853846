"""The notebooks as they are kept: whole, small, without traces of a machine; and, with JAXCXR_QUICK=1, run from top to bottom.

JAXCXR_QUICK=1 python -m pytest -m '' tests/notebooks     needs the `notebooks` extra
"""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TRACES = re.compile(r"/(?:home|root|tmp|work|usr|opt|Users)/|[A-Z]:\\|[Ww]arning:|Traceback|\x1b\[")
"""What an output must not show: a folder of some machine, a warning, a failure, a terminal's colours."""

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict[str, Any]]:
    return [
        cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"
    ]


def texts(cell: dict[str, Any]) -> list[str]:
    """What a reader reads of a cell's outputs; pictures are not text."""
    found = []
    for output in cell["outputs"]:
        shown = {kind: text for kind, text in output.get("data", {}).items() if not kind.startswith("image/")}
        found += ["".join(text) for text in [output.get("text", ""), *shown.values()]]
    return found


def pictures(cells: list[Any]) -> int:
    return sum(
        kind.startswith("image/")
        for cell in cells
        for output in cell["outputs"]
        for kind in output.get("data", {})
    )


def test_there_are_six() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"0{number}_" for number in range(1, 7)]


@by_name
def test_a_notebook_is_kept_as_it_ran(path: Path) -> None:
    assert path.stat().st_size < 300_000
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert {output["output_type"] for output in cell["outputs"]} <= {
            "stream",
            "display_data",
            "execute_result",
        }
        assert all(output.get("name") != "stderr" for output in cell["outputs"])
        for text in [*texts(cell), "".join(cell["source"])]:
            assert not TRACES.search(text), text[:200]
    assert pictures(cells) > 0


LONG = ("01_first_private_model", "04_fairness", "06_per_example_gradients")
"""Notebooks of commands and examples that other tests run as well."""


@pytest.mark.skipif(os.environ.get("JAXCXR_QUICK") != "1", reason="JAXCXR_QUICK=1 runs the notebooks")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[pytest.mark.thorough] if path.stem in LONG else [])
        for path in NOTEBOOKS
    ],
)
def test_a_notebook_runs_from_top_to_bottom(path: Path, house: Path) -> None:
    from notebooks.execute import executed

    notebook = executed(house / "notebooks" / path.name)
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds.count("code") == len(code_cells(path))
    assert pictures([cell for cell in notebook.cells if cell.cell_type == "code"]) > 0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the notebooks read, so that their runs and stores are left there."""
    house = tmp_path_factory.mktemp("house")
    for folder in ("notebooks", "configs", "scripts", "docs"):
        shutil.copytree(ROOT / folder, house / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return house
