"""Execute the notebooks from top to bottom and keep their outputs.

    python notebooks/execute.py            all of them, in the full setting (about half an hour on two cores)
    python notebooks/execute.py 05 06      some of them
    JAXCXR_QUICK=1 python notebooks/execute.py --out FOLDER      the reduced setting, outputs kept elsewhere

Progress bars and the time of execution are left out of what is kept.
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import nbformat
import tyro
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
SECONDS = 3600


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Which notebooks, and where to write them.

    Attributes:
        numbers: such as 01; all unless given.
        out: folder for the executed notebooks; in place unless given.
    """

    numbers: tyro.conf.Positional[tuple[str, ...]] = ()
    out: Path = HERE


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run in its own folder.

    Raises:
        RuntimeError: a cell, or a script that it ran, failed.
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    notebook: Any = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(path.parent))
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            said = output.get("text", "") if output.output_type == "stream" else ""
            if output.output_type == "error" or "error:" in said:
                raise RuntimeError(
                    f"{path.name}: {cell.source[:80]!r} failed: {said or output.get('evalue')}"
                )
        cell.outputs = _kept(cell.outputs)
        cell.metadata = {}
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    return notebook


def _kept(outputs: list[Any]) -> list[Any]:
    """Outputs without what goes to stderr (progress), what was printed in pieces in one, lines as they last
    stood on screen.
    """
    kept: list[Any] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return kept


def main() -> None:
    """Execute and write."""
    arguments = tyro.cli(Arguments, description=__doc__)
    for path in sorted(HERE.glob("[0-9][0-9]_*.ipynb")):
        if arguments.numbers and path.name[:2] not in arguments.numbers:
            continue
        notebook = executed(path)
        arguments.out.mkdir(parents=True, exist_ok=True)
        out = arguments.out / path.name
        nbformat.write(notebook, out)
        print(f"{out.name}: {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
