"""Read the marks of weights that must not leave the hospital; whoever writes weights writes them.

A mark stands in the record of a weights folder (`provenance.json`), in the metadata of a .safetensors file,
in the dictionary of a .pth or .pt file, or in the name of the function of a .stablehlo file.
"""

import json
from pathlib import Path
from typing import Any

from jaxcxr.errors import InputError
from jaxcxr.models.export import name_of_stablehlo
from jaxcxr.models.torch_files import read_metadata

WATERMARK, REASONS = "watermark", "reasons_against_release"
"""Keys of a mark."""
STABLEHLO_MARK = "not_for_release"
"""Name of the function in a marked StableHLO file, visible to its readers."""
RECORD = "provenance.json"


def marks_of(path: Path) -> tuple[str, ...]:
    """Reasons why the marked weights in a file or folder must not leave; empty without a mark.

    In a folder, its record and every .safetensors file in it are read.

    Raises:
        InputError: a file cannot be read.
    """
    if path.is_dir():
        inside = (reason for file in sorted(path.glob("*.safetensors")) for reason in marks_of(file))
        return tuple(dict.fromkeys([*_marks(_record(path / RECORD)), *inside]))
    if path.suffix == ".stablehlo":
        return (STABLEHLO_MARK.replace("_", " "),) if name_of_stablehlo(path) == STABLEHLO_MARK else ()
    return _marks(read_metadata(path))


def _record(path: Path) -> Any:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error


def _marks(record: Any) -> tuple[str, ...]:
    if not isinstance(record, dict) or WATERMARK not in record:
        return ()
    reasons = record.get(REASONS)
    if isinstance(reasons, str):
        try:
            reasons = json.loads(reasons)
        except ValueError:
            reasons = [reasons]
    return (
        tuple(str(reason) for reason in reasons)
        if isinstance(reasons, list) and reasons
        else (str(record[WATERMARK]),)
    )
