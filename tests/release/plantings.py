"""Ways in which an identifier gets into a release, each as (folder, identifier) -> None."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pydicom
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from safetensors.numpy import load_file, save_file

Planting = Callable[[Path, str], None]


def text(value: str) -> bytes:
    return f"remark: image {value} was hard\n".encode()


def file(name: str, content: Callable[[str], bytes]) -> Planting:
    def plant(folder: Path, value: str) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(value))

    return plant


def named(form: Callable[[str], str]) -> Planting:
    def plant(folder: Path, value: str) -> None:
        path = folder / form(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")

    return plant


def edited(name: str, change: Callable[[dict, str], object]) -> Planting:
    def plant(folder: Path, value: str) -> None:
        values = json.loads((folder / name).read_text())
        change(values, value)
        (folder / name).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    return plant


def config(change: Callable[[dict, str], object]) -> Planting:
    def plant(folder: Path, value: str) -> None:
        values = yaml.safe_load((folder / "config.yaml").read_text())
        change(values, value)
        (folder / "config.yaml").write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False))

    return plant


def appended(name: str, content: Callable[[str], bytes]) -> Planting:
    def plant(folder: Path, value: str) -> None:
        (folder / name).write_bytes((folder / name).read_bytes() + content(value))

    return plant


def zipped(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", text(value) * 50)
    return stream.getvalue()


def zip_name(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(f"{value}.txt", b"")
    return stream.getvalue()


def zip_comment(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.comment = value.encode()
    return stream.getvalue()


def nested(value: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inner.gz", gzip.compress(zipped(value)))
    return stream.getvalue()


def tarred(value: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(f"{value}.txt"), io.BytesIO(b""))
    return stream.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def parquet(value: str) -> bytes:
    stream = io.BytesIO()
    pd.DataFrame({"patient": [value, value, "other"]}).to_parquet(stream)
    return stream.getvalue()


def picture(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(stream, kind, **options)
    return stream.getvalue()


def png(value: str, packed: bool) -> bytes:
    info = PngInfo()
    info.add_text("Comment", f"image {value} " * 9, zip=packed)
    return picture("PNG", pnginfo=info)


def dicom(value: str) -> bytes:
    image = pydicom.Dataset()
    image.PatientID, image.SOPInstanceUID, image.SOPClassUID = value, "1.2.3", "1.2.840.10008.5.1.4.1.1.1"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, image, enforce_file_format=True)
    return stream.getvalue()


def database(folder: Path, value: str) -> None:
    connection = sqlite3.connect(folder / "index.db")
    connection.execute("create table images (patient text)")
    connection.execute("insert into images values (?)", (value,))
    connection.commit()
    connection.close()


def extra_tensor(folder: Path, value: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), f"params/{value}": np.zeros(2, np.float32)}, path)


def bytes_tensor(folder: Path, value: str) -> None:
    path = folder / "model.safetensors"
    save_file({**load_file(path), "params/extra": np.frombuffer(value.encode(), np.uint8).copy()}, path)


def metadata(folder: Path, value: str) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"patient": value})


def header_field(folder: Path, value: str) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    next(iter(header.values()))["remark"] = value
    again = json.dumps(header).encode()
    path.write_bytes(len(again).to_bytes(8, "little") + again + content[8 + length :])


def in_floats(encoding: str) -> Planting:
    def plant(folder: Path, value: str) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        letters = f" {value} ".encode(encoding)
        kernel = weights["params/conv1/kernel"]
        content = bytearray(kernel.tobytes())
        content[100 : 100 + len(letters)] = letters
        weights["params/conv1/kernel"] = (
            np.frombuffer(bytes(content), np.float32).reshape(kernel.shape).copy()
        )
        save_file(weights, path)

    return plant


def link(folder: Path, value: str) -> None:
    (folder / "orbax" / value).symlink_to(f"/images/{value}")


def ocdbt(folder: Path, value: str) -> None:
    """A checkpoint as orbax writes it by default, with one more parameter, in place of the release's."""
    target = folder / "orbax" / "other"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(target.resolve(), {"params": {value: np.ones(3, np.float32)}})


PLANTINGS: dict[str, Planting] = {
    # names
    "file name": named(lambda v: f"{v}.txt"),
    "file name in orbax": named(lambda v: f"orbax/{v}_0"),
    "file name, upper case": named(lambda v: f"{v.upper()}.bin"),
    "file name, lower case": named(lambda v: f"scan_{v.lower()}_final.bin"),
    "hidden file name": named(lambda v: f".{v}"),
    "folder name": named(lambda v: f"{v}/readme"),
    "empty folder": lambda folder, v: (folder / v).mkdir(),
    "deep folder name": named(lambda v: f"a/b/{v}/c/d.bin"),
    "link": link,
    # text
    "text": file("notes.txt", text),
    "table": file("images.csv", lambda v: f"image,label\n{v},1\n".encode()),
    "JSON key": file("more.json", lambda v: json.dumps({"images": {v: 1}}).encode()),
    "JSON value, escaped": file("more.json", lambda v: json.dumps({"images": ["ü" + v]}).encode()),
    "YAML": file("more.yaml", lambda v: yaml.safe_dump({"images": [v]}).encode()),
    "HTML entities": file("page.html", lambda v: "".join(f"&#{ord(c)};" for c in v).encode()),
    "URL escapes": file("links.txt", lambda v: ("http://pacs/?id=" + "".join(f"%{ord(c):02x}" for c in v)).encode()),
    "UTF-16": file("notes.txt", lambda v: f"image {v}".encode("utf-16")),
    "UTF-16 big-endian": file("page.html", lambda v: b"<p>" + v.encode("utf-16-be") + b"</p>\xff"),
    "UTF-32": file("notes.txt", lambda v: f"image {v}".encode("utf-32")),
    "Latin-1": file("notes.txt", lambda v: f"Röntgen {v}".encode("latin-1")),
    "decomposed": file("notes.txt", lambda v: unicodedata.normalize("NFD", f"Röntgen {v}").encode()),
    "upper case": file("notes.txt", lambda v: text(v.upper())),
    "log line": file("train.log", lambda v: f"2024-01-01 12:00:00 read /pacs/{v}/1.dcm in 3 ms\n".encode()),
    # binary formats
    "NPZ rows": file("names.npz", lambda v: npz(rows=np.array([v, "other"]))),
    "NPZ bytes": file("names.npz", lambda v: npz(rows=np.array([v.encode()]))),
    "NPZ array name": file("names.npz", lambda v: npz(**{v: np.zeros(2)})),
    "pickle": file("images.pkl", lambda v: pickle.dumps({"image": v})),
    "HDF5 attribute": file("data.h5", lambda v: b"\x89HDF\r\n\x1a\n" + bytes(range(256)) + v.encode() + b"\0" + bytes(range(256))),
    "HDF5 chunk": file("data.h5", lambda v: b"\x89HDF\r\n\x1a\n" + bytes(range(256)) + zlib.compress(text(v) * 9) + bytes(99)),
    "parquet": file("images.parquet", parquet),
    "PNG text": file("image.png", lambda v: png(v, packed=False)),
    "PNG packed text": file("image.png", lambda v: png(v, packed=True)),
    "JPEG comment": file("image.jpg", lambda v: picture("JPEG", comment=v.encode())),
    "DICOM": file("image.dcm", dicom),
    "SQLite": database,
    "zip": file("archive.zip", zipped),
    "zip member name": file("archive.zip", zip_name),
    "zip comment": file("archive.zip", zip_comment),
    "zip in gzip in zip": file("archive.zip", nested),
    "gzip": file("log.gz", lambda v: gzip.compress(text(v))),
    "tar.gz member name": file("all.tgz", tarred),
    "bzip2": file("log.bz2", lambda v: bz2.compress(text(v))),
    "xz": file("log.xz", lambda v: lzma.compress(text(v))),
    # the release's own files
    "weights: metadata": metadata,
    "weights: after the end": appended("model.safetensors", str.encode),
    "weights: parameter name": extra_tensor,
    "weights: tensor of bytes": bytes_tensor,
    "weights: header field": header_field,
    "weights: bytes of a kernel": in_floats("ascii"),
    "weights: bytes of a kernel, UTF-16": in_floats("utf-16-le"),
    "card: sentence": edited("privacy_card.json", lambda card, v: card["assumptions"].append(f"Not {v}.")),
    "card: key": edited("privacy_card.json", lambda card, v: card.update({v: 1})),
    "card: name of a mechanism": edited("privacy_card.json", lambda card, v: card["mechanisms"][0].update(name=f"of {v}")),
    "card: watermark": edited("privacy_card.json", lambda card, v: card.update(watermark=v)),
    "card: version": edited("privacy_card.json", lambda card, v: card["fingerprints"].update(jaxcxr=v)),
    "card: fingerprint": edited("privacy_card.json", lambda card, v: card["fingerprints"].update(ledger=v)),
    "card: after the end": appended("privacy_card.json", lambda v: f"\n\n{v}".encode()),
    "page: comment": appended("privacy_card.html", lambda v: f"<!-- {v} -->".encode()),
    "configuration: finding": config(lambda c, v: c["data"]["findings"].__setitem__(0, f"seen in {v}")),
    "configuration: store": config(lambda c, v: c["data"].update(store=f"/stores/{v}")),
    "configuration: weights": config(lambda c, v: c["model"].update(weights=f"runs/{v}")),
    "configuration: groups": config(lambda c, v: c["evaluation"].update(groups=[v])),
    "configuration: key": config(lambda c, v: c.update({v: 1})),
    "configuration: comment": appended("config.yaml", lambda v: f"# {v}\n".encode()),
    "orbax: metadata": edited("orbax/params/_METADATA", lambda m, v: m.update(custom_metadata={"image": v})),
    "orbax: number": edited("orbax/params/_METADATA", lambda m, _: m.update(custom_metadata={"n": 483920})),
    "orbax: array description": edited("orbax/params/params.head.bias/.zarray", lambda m, v: m.update(film=v)),
    "orbax: after a chunk": appended("orbax/params/params.head.bias/0", str.encode),
    "orbax: another array": named(lambda v: f"orbax/params/params.{v}/0"),
    "orbax: record": edited("orbax/provenance.json", lambda p, v: p.update(by=v)),
    "orbax: OCDBT": ocdbt,
}  # fmt: skip
