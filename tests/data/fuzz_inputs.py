"""Damage files of every kind that jaxcxr reads, and see that each is read or refused with one sentence.

python -m tests.data.fuzz_inputs --minutes 5 --kinds dicom tiff

Each round takes a sound file, changes some of its bytes (or a line, a cell or a key of a text), and reads it. An
`InputError` of one line is right, and so is a result; anything else is printed with the seed that makes it again.
"""

import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from PIL import Image
from safetensors.numpy import save_file

from jaxcxr.config import Experiment
from jaxcxr.config_files import load
from jaxcxr.data.images import decode_image, preprocess
from jaxcxr.data.manifest import read_table
from jaxcxr.data.sources import table
from jaxcxr.data.sources.dicom import header
from jaxcxr.errors import InputError
from jaxcxr.eval.predictions import read_predictions
from tests.data.odd_files import PADDED, RIGHT, TWELVE, picture, tiff_files

MAP = """columns: {path: path, patient_id: patient_id, age: age, sex: sex}
graded: {a: {column: a, grades: {0: 0, 1: 1, "": null}}}
draw: {train: 0.6, valid: 0.2, test: 0.2, seed: 1}
same_patient: {00123: '00456', B: C}
"""
TABLE = "path;patient_id;age;sex;a\n" + "".join(
    f"f{i}.png;{i // 2:03d};4{i % 10},5;F;{i % 2}\n" for i in range(20)
)


def image_of(path: Path) -> None:
    """Decode, preprocess and, where it is DICOM, read the tags."""
    if path.suffix == ".dcm":
        header(path.parent, path.name)
    preprocess(decode_image(path).pixels, 16)


def map_of(path: Path) -> None:
    """Read a column map and, with it, the table beside it."""
    table.read(path.with_name("whole.csv"), load(table.TableSource, path))


def table_of(path: Path) -> None:
    """Read a table and, with a sound column map, its manifest."""
    read_table(path)
    if path.suffix == ".csv":
        table.read(path, load(table.TableSource, path.with_name("whole.yaml")))


def weights_of(path: Path) -> None:
    """Read the arrays of a file of weights."""
    from jaxcxr.models.torch_files import read_state

    read_state(path)


def sound_files(folder: Path) -> dict[str, tuple[Callable[[Path], None], list[Path]]]:
    """Kind -> reader and sound files."""
    dicom = [write(folder / f"{name}") for files in (RIGHT, PADDED) for name, write in files.items()]
    tiff = [write(folder / name) for name, write in tiff_files().items()]
    grey = Image.fromarray(picture(8).astype(np.uint8))
    pictures = []
    for name, exif in (("a.png", b""), ("a.jpg", b""), ("b.png", Image.Exif().tobytes())):
        grey.save(folder / name, exif=exif)
        pictures.append(folder / name)
    Image.fromarray(TWELVE).save(folder / "c.png")
    (folder / "whole.csv").write_text(TABLE)
    (folder / "utf16.csv").write_bytes(TABLE.encode("utf-16"))
    (folder / "whole.yaml").write_text(MAP)
    configs = Path(__file__).resolve().parents[2] / "configs"
    (folder / "experiment.yaml").write_text((configs / "quick.yaml").read_text())
    read_table(folder / "whole.csv").to_parquet(folder / "whole.parquet")
    predictions = pd.DataFrame({"image_id": [f"i{i}" for i in range(30)], "patient_id": [f"p{i // 2}" for i in range(30)],
                                "split": ["valid"] * 10 + ["test"] * 20, "age": 40.5, "y_a": [i % 2 for i in range(30)], "p_a": 0.25})  # fmt: skip
    predictions.to_parquet(folder / "predictions.parquet")
    predictions.to_csv(folder / "predictions.csv", index=False)
    save_file({"head.weight": np.ones((2, 3), np.float32)}, folder / "w.safetensors")
    return {
        "picture": (image_of, [*pictures, folder / "c.png"]),
        "tiff": (image_of, tiff),
        "dicom": (image_of, dicom),
        "table": (table_of, [folder / "whole.csv", folder / "utf16.csv", folder / "whole.parquet"]),
        "map": (map_of, [folder / "whole.yaml"]),
        "config": (lambda path: load(Experiment, path) and None, [folder / "experiment.yaml"]),
        "predictions": (
            lambda path: read_predictions(path) and None,
            [folder / "predictions.parquet", folder / "predictions.csv"],
        ),
        "weights": (weights_of, [folder / "w.safetensors"]),
    }


def damaged(content: bytes, chance: random.Random, text: bool) -> bytes:
    """The content with some bytes changed, cut, doubled or put in; of a text, sometimes whole lines or marks."""
    found = bytearray(content)
    for _ in range(chance.randint(1, 5)):
        if not found:
            break
        place = chance.randrange(len(found))
        kind = chance.randrange(8 if text else 5)
        if kind == 0:
            found[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del found[place : place + chance.randint(1, 40)]
        elif kind == 2:
            found[place:place] = chance.randbytes(chance.randint(1, 8))
        elif kind == 3:
            found[place : place + 4] = chance.choice(
                [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0"]
            )
        elif kind == 4:
            other = chance.randrange(len(found))
            found[place : place + 8] = found[other : other + 8]
        elif kind == 5:
            lines = bytes(found).split(b"\n")
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
            found = bytearray(b"\n".join(lines))
        else:
            marks = [b",", b";", b'"', b"'", b": ", b"- ", b"{", b"}", b"[", b"&a ", b"*a", b"!!int ", b"\t", b"nan", b"1e999", b"\xc3\xa4", b"\n", b"<<: "]  # fmt: skip
            found[place:place] = chance.choice(marks)
    return bytes(found)


def main(minutes: float = 1.0, kinds: tuple[str, ...] = (), seed: int = 0) -> None:
    """Fuzz each kind for some minutes.

    Args:
        minutes: for each kind.
        kinds: picture, tiff, dicom, table, map, config, predictions, weights; all unless given.
        seed: of the first round.
    """
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, (read, files) in sound_files(folder).items():
            if kinds and kind not in kinds:
                continue
            ends, rounds, refused, seen = time.monotonic() + 60 * minutes, 0, 0, set()
            while time.monotonic() < ends:
                chance = random.Random(seed + rounds)
                rounds += 1
                whole = chance.choice(files)
                path = folder / f"damaged_{kind}{whole.suffix}"
                path.write_bytes(damaged(whole.read_bytes(), chance, whole.suffix in (".csv", ".yaml")))
                try:
                    read(path)
                except InputError as error:
                    refused += 1
                    wrong = "\n" in str(error) or len(str(error)) > 1500
                    complaint = (
                        f"a message of {len(str(error))} characters: {str(error)[:300]!r}" if wrong else ""
                    )
                except Exception as error:  # noqa: BLE001  whatever it is, it is a fault
                    at = traceback.extract_tb(error.__traceback__)[-1]
                    complaint = f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}: {str(error)[:200]!r}"
                else:
                    complaint = ""
                if complaint and complaint.split(":")[0] not in seen:
                    seen.add(complaint.split(":")[0])
                    faults += 1
                    print(f"{kind}: seed {seed + rounds - 1}, {whole.name}: {complaint}", flush=True)
            print(f"{kind}: {rounds} files, {refused} refused", flush=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    tyro.cli(main)
