"""Image files as other people's programs write them, all made by formula; by hand, they are run through the reader:

python -m tests.data.odd_files FOLDER

prints what each file gives, and leaves a contact sheet of them. `tests/data/test_odd_files.py` asserts it.
"""

import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import tifffile
from PIL import Image
from pydicom import config
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from jaxcxr.data.decoded import odd
from jaxcxr.data.images import decode_image, preprocess
from jaxcxr.errors import InputError

ROWS, COLUMNS = 40, 36


def picture(bits: int = 12) -> np.ndarray:
    """Grey values that no turn, mirroring or inversion leaves as they are; int64."""
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    values = (
        0.4 * x / COLUMNS
        + 0.2 * y / ROWS
        + 0.4 * np.exp(-((x - 8) ** 2 + (y - 10) ** 2) / 60)
        + 0.01 * ((3 * x + y) % 7)
    )
    values = (values - values.min()) / np.ptp(values)
    return np.round(values * (2**bits - 1)).astype(np.int64)


def dicom(path: Path, values: np.ndarray, changes: dict[str, object] | None = None, **how: Any) -> Path:
    """A DX image. `changes`: element -> value, (representation, value) or None to remove it."""
    dataset = Dataset()
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Modality, dataset.PatientID, dataset.ViewPosition = "DX", "p", "PA"
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.BitsAllocated = values.dtype.itemsize * 8
    dataset.BitsStored = how.get("bits", 12 if values.dtype.itemsize == 2 else 8)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for keyword, value in (changes or {}).items():
        if value is None:
            delattr(dataset, keyword)
        elif isinstance(value, tuple):
            tag = tag_for_keyword(keyword)
            assert tag is not None
            dataset[tag] = pydicom.DataElement(tag, *value, validation_mode=config.IGNORE)
        else:
            setattr(dataset, keyword, value)
    syntax = how.get("syntax", ExplicitVRLittleEndian)
    before = config.settings.writing_validation_mode
    config.settings.writing_validation_mode = config.IGNORE
    try:
        if how.get("bare"):
            dataset.save_as(
                path,
                implicit_vr=syntax == ImplicitVRLittleEndian,
                little_endian=True,
                enforce_file_format=False,
            )
        else:
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            dataset.save_as(path, enforce_file_format=True)
    finally:
        config.settings.writing_validation_mode = before
    if how.get("no_syntax"):
        _without_transfer_syntax(path)
    return path


def _without_transfer_syntax(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    meta = dataset.file_meta
    del meta.TransferSyntaxUID
    content = path.read_bytes()
    start = content.index(struct.pack("<HH", 8, 0x16), 132)
    head = DicomBytesIO()
    head.is_little_endian, head.is_implicit_VR = True, False
    write_file_meta_info(head, meta, enforce_standard=False)
    path.write_bytes(b"\0" * 128 + b"DICM" + head.getvalue() + content[start:])


def table(first: int, values: np.ndarray, bits: int = 16) -> Dataset:
    """One item of a look-up table sequence."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(values) & 0xFFFF, first & 0xFFFF, bits])
    item.add_new(0x00283006, "OW", values.astype("<u2").tobytes())
    return item


TWELVE = picture().astype(np.uint16)
SIGNED = (picture() - 2048).astype(np.int16)
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def _palette() -> dict[str, object]:
    found: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        found[f"{colour}PaletteColorLookupTableDescriptor"] = ("US", [256, 0, 16])
        found[f"{colour}PaletteColorLookupTableData"] = ("OW", (np.arange(256) * 257).astype("<u2").tobytes())
    return found


def _ybr(full: bool) -> np.ndarray:
    grey = picture(8).astype(np.uint8)
    if full:
        return np.stack([grey, np.full_like(grey, 128), np.full_like(grey, 128)], axis=-1)
    pairs = grey.reshape(ROWS, COLUMNS // 2, 2)
    return np.concatenate([pairs, np.full((*pairs.shape[:2], 2), 128, np.uint8)], axis=-1)


def _float(path: Path) -> Path:
    dicom(path, TWELVE)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.BitsAllocated = 32
    dataset.FloatPixelData = picture().astype("<f4").tobytes()
    dataset.save_as(path)
    return path


def _padded(values: np.ndarray, pad: int) -> np.ndarray:
    values = values.copy()
    values[:, :5] = np.array(pad).astype(values.dtype)
    return values


def _dicom(
    values: np.ndarray, changes: dict[str, object] | None = None, **how: Any
) -> Callable[[Path], Path]:
    return lambda path: dicom(path.with_suffix(str(how.get("suffix", ".dcm"))), values, changes, **how)


RIGHT: dict[str, Callable[[Path], Path]] = {
    "plain": _dicom(TWELVE),
    "implicit": _dicom(TWELVE, syntax=ImplicitVRLittleEndian),
    "bare": _dicom(TWELVE, bare=True),
    "bare_implicit": _dicom(TWELVE, bare=True, syntax=ImplicitVRLittleEndian),
    "bare_unnamed": _dicom(TWELVE, bare=True, suffix=".img"),
    "no_syntax_implicit": _dicom(TWELVE, syntax=ImplicitVRLittleEndian, no_syntax=True),
    "no_syntax_explicit": _dicom(TWELVE, no_syntax=True),
    "slope_empty": _dicom(TWELVE, {"RescaleSlope": ("DS", ""), "RescaleIntercept": ("DS", "")}),
    "slope_alone": _dicom(TWELVE, {"RescaleSlope": ("DS", "2")}),
    "intercept_alone": _dicom(TWELVE, {"RescaleIntercept": ("DS", "-1000")}),
    "slope_listed": _dicom(TWELVE, {"RescaleSlope": ("DS", ["2", "3"]), "RescaleIntercept": ("DS", ["1", "2"])}),
    "slope_text": _dicom(TWELVE, {"RescaleSlope": ("LO", "1.5"), "RescaleIntercept": ("SH", "-10")}),
    "slope_whole": _dicom(TWELVE, {"RescaleSlope": ("US", 1), "RescaleIntercept": ("SS", -5)}),
    "slope_comma": _dicom(TWELVE, {"RescaleSlope": ("LO", "0,5"), "RescaleIntercept": ("LO", "0")}),
    "slope_float": _dicom(TWELVE, {"RescaleSlope": ("FD", 0.5), "RescaleIntercept": ("FL", 2.0)}),
    "slope_0": _dicom(TWELVE, {"RescaleSlope": ("DS", "0"), "RescaleIntercept": ("DS", "100")}),
    "window_text": _dicom(TWELVE, {"WindowCenter": ("LO", "2048"), "WindowWidth": ("ST", "4096 ")}),
    "window_float": _dicom(TWELVE, {"WindowCenter": ("FD", 2048.0), "WindowWidth": ("FL", 4096.0)}),
    "window_listed": _dicom(TWELVE, {"WindowCenter": ("DS", ["2048", "5"]), "WindowWidth": ("DS", ["4096", "1"])}),
    "window_lists_of_unlike_length": _dicom(TWELVE, {"WindowCenter": ("DS", ["2048"]), "WindowWidth": ("DS", ["4096", "1"])}),
    "window_empty": _dicom(TWELVE, {"WindowCenter": ("DS", ""), "WindowWidth": ("DS", "")}),
    "window_half": _dicom(TWELVE, {"WindowCenter": ("DS", "5")}),
    "function_empty": _dicom(TWELVE, {**WINDOW, "VOILUTFunction": ("CS", "")}),
    "function_listed": _dicom(TWELVE, {**WINDOW, "VOILUTFunction": ("CS", ["LINEAR", "SIGMOID"])}),
    "function_lower_case": _dicom(TWELVE, {**WINDOW, "VOILUTFunction": ("LO", "linear_exact ")}),
    "function_unknown": _dicom(TWELVE, {**WINDOW, "VOILUTFunction": ("CS", "CUBIC")}),
    "tables_empty": _dicom(TWELVE, {"VOILUTSequence": ("SQ", []), "ModalityLUTSequence": ("SQ", [])}),
    "table_without_data": _dicom(TWELVE, {"VOILUTSequence": ("SQ", [Dataset()])}),
    "table_of_other_sign": _dicom(SIGNED, {"VOILUTSequence": ("SQ", [table(-2048, np.arange(4096))])}),
    "table_of_65536": _dicom(picture(16).astype(np.uint16), {"VOILUTSequence": ("SQ", [table(0, np.arange(65536))])}, bits=16),
    "shape_empty": _dicom(TWELVE, {"PresentationLUTShape": ("CS", "")}),
    "photometric_lower_case": _dicom(TWELVE, {"PhotometricInterpretation": ("LO", "monochrome2 ")}),
    "photometric_listed": _dicom(TWELVE, {"PhotometricInterpretation": ("CS", ["MONOCHROME2", "MONOCHROME1"])}),
    "white_as_zero": _dicom((4095 - picture()).astype(np.uint16), {"PhotometricInterpretation": "MONOCHROME1"}),
    "slope_minus": _dicom((4095 - picture()).astype(np.uint16), {"RescaleSlope": ("DS", "-1")}),
    "slope_minus_window": _dicom(
        (4095 - picture()).astype(np.uint16),
        {"RescaleSlope": ("DS", "-1"), "RescaleIntercept": ("DS", "4095"), "WindowCenter": 2048, "WindowWidth": 4096},
    ),
    "representation_empty": _dicom(TWELVE, {"PixelRepresentation": None}),
    "samples_empty": _dicom(TWELVE, {"SamplesPerPixel": None}),
    "high_bit_text": _dicom(TWELVE, {"HighBit": ("IS", "11"), "BitsStored": ("LO", "12")}),
    "rows_text": _dicom(TWELVE, {"Rows": ("IS", str(ROWS)), "Columns": ("DS", f"{COLUMNS}.0")}),
    "frames_empty": _dicom(TWELVE, {"NumberOfFrames": ("IS", "")}),
    "orientation_empty": _dicom(TWELVE, {"PatientOrientation": ("CS", "")}),
    "orientation_text": _dicom(np.ascontiguousarray(TWELVE[:, ::-1]), {"PatientOrientation": ("ST", "R\\F")}),
    "big_endian": _dicom(TWELVE.astype(">u2"), syntax=ExplicitVRBigEndian),
    "eight_bits": _dicom(picture(8).astype(np.uint8)),
    "palette": _dicom(picture(8).astype(np.uint8), _palette()),
    "rgb_16": _dicom(np.stack([TWELVE] * 3, axis=-1), {"PhotometricInterpretation": "RGB"}, bits=16),
    "rgb_without_planes": _dicom(np.stack([picture(8).astype(np.uint8)] * 3, axis=-1), {"PhotometricInterpretation": "RGB"}),
    "ybr_full": _dicom(_ybr(True), {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0}),
    "ybr_422_full_length": _dicom(_ybr(True), {"PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0}),
    "ybr_422": _dicom(_ybr(False), {"PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 0, "Columns": COLUMNS}),
    "ybr_full_of_422_length": _dicom(_ybr(False), {"PhotometricInterpretation": "YBR_FULL", "PlanarConfiguration": 0, "Columns": COLUMNS}),
    "float": lambda path: _float(path.with_suffix(".dcm")),
}  # fmt: skip
"""Name -> writer of a DICOM file that shows the picture."""

PADDED: dict[str, Callable[[Path], Path]] = {
    "unsigned": _dicom(_padded(TWELVE, 0), {"PixelPaddingValue": ("US", 0)}),
    "signed": _dicom(_padded(SIGNED, -2000), {"PixelPaddingValue": ("SS", -2000)}),
    "other_sign": _dicom(_padded(SIGNED, -2000), {"PixelPaddingValue": ("US", 63536)}),
    "other_sign_of_12_bits": _dicom(_padded(SIGNED, -2000), {"PixelPaddingValue": ("US", 2096)}),
    "negative_for_unsigned": _dicom(_padded(TWELVE, 65535), {"PixelPaddingValue": ("SS", -1)}, bits=16),
    "beyond_the_bits": _dicom(_padded(TWELVE, 65535), {"PixelPaddingValue": ("US", 65535)}),
    "as_text": _dicom(_padded(TWELVE, 4095), {"PixelPaddingValue": ("IS", "4095")}),
    "as_unknown": _dicom(_padded(TWELVE, 4095), {"PixelPaddingValue": ("UN", struct.pack("<H", 4095))}),
    "range": _dicom(_padded(SIGNED, -2000), {"PixelPaddingValue": ("US", 63530), "PixelPaddingRangeLimit": ("US", 63540)}),
    "listed": _dicom(_padded(TWELVE, 4095), {"PixelPaddingValue": ("US", [4095, 0])}),
    "with_slope": _dicom(_padded(SIGNED, -2000), {"PixelPaddingValue": ("US", 63536), "RescaleSlope": 2, "RescaleIntercept": 7}),
}  # fmt: skip
"""Name -> writer of a DICOM file whose first five columns are padding."""


def tiff_files() -> dict[str, Callable[[Path], Path]]:
    """Name -> writer of a TIFF that shows the picture, of every photometric interpretation, depth and compression."""

    def writer(values: np.ndarray, **how: Any) -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            tifffile.imwrite(path.with_suffix(".tif"), values, metadata=None, **how)
            return path.with_suffix(".tif")

        return write

    found: dict[str, Callable[[Path], Path]] = {}
    compressions = (None, "lzw", "zlib", "packbits", "zstd")
    for kind, top in (
        (np.uint8, 255),
        (np.uint16, 65535),
        (np.uint32, 2**32 - 1),
        (np.int16, -1),
        (np.int8, -1),
    ):
        bits = 8 if np.dtype(kind).itemsize == 1 else 12
        values = picture(bits) - (2 ** (bits - 1) if top == -1 else 0)
        for compression in compressions:
            name = f"{np.dtype(kind).name}_{compression or 'plain'}"
            found[f"black_{name}"] = writer(
                values.astype(kind), photometric="minisblack", compression=compression
            )
            found[f"white_{name}"] = writer(
                (top - values).astype(kind), photometric="miniswhite", compression=compression
            )
    for kind in (np.float16, np.float32, np.float64):
        found[f"white_{np.dtype(kind).name}"] = writer(
            (1 - picture(10) / 1023).astype(kind), photometric="miniswhite"
        )
    found["white_big_endian"] = writer(
        (65535 - picture()).astype(">u2"), photometric="miniswhite", byteorder=">"
    )
    found["white_big_tiff"] = writer(
        (65535 - picture()).astype(np.uint16), photometric="miniswhite", bigtiff=True
    )
    found["white_tiled"] = writer(
        (65535 - picture()).astype(np.uint16),
        photometric="miniswhite",
        tile=(16, 16),
        compression="zlib",
        predictor=True,
    )
    found["white_jpeg"] = writer(
        (255 - picture(8)).astype(np.uint8),
        photometric="miniswhite",
        compression="jpeg",
        compressionargs={"level": 98},
    )
    found["white_bottom_first"] = writer(
        np.ascontiguousarray((65535 - picture()).astype(np.uint16)[::-1]),
        photometric="miniswhite",
        extratags=[(274, 3, 1, 4, True)],
    )
    for depth in (8, 16):
        colour = np.stack([picture(min(depth, 12)).astype(f"u{depth // 8}")] * 3)
        found[f"rgb_{depth}"] = writer(
            np.ascontiguousarray(colour.transpose(1, 2, 0)), photometric="rgb", compression="zlib"
        )
        found[f"rgb_planes_{depth}"] = writer(colour, photometric="rgb", planarconfig="separate")
        inks = np.zeros((ROWS, COLUMNS, 4), f"u{depth // 8}")
        inks[..., 3] = 2**depth - 1 - picture(depth).astype(np.int64)
        found[f"inks_{depth}"] = writer(inks, photometric="separated")
        palette = np.stack([np.arange(2**depth, dtype=np.int64) * (65535 // (2**depth - 1))] * 3).astype(
            np.uint16
        )
        found[f"palette_{depth}"] = writer(
            picture(depth).astype(f"u{depth // 8}"), photometric="palette", colormap=palette
        )
    found["rgba_16"] = writer(
        np.dstack([np.stack([TWELVE] * 3, axis=-1), np.full((ROWS, COLUMNS), 9, np.uint16)]),
        photometric="rgb",
        extrasamples=["unassalpha"],
    )
    found["grey_with_alpha"] = writer(
        np.dstack([TWELVE, np.full((ROWS, COLUMNS), 9, np.uint16)]),
        photometric="minisblack",
        extrasamples=["unassalpha"],
        planarconfig="contig",
    )
    return found


def png_files() -> dict[str, Callable[[Path], Path]]:
    """Name -> writer of a PNG of 16 bits with colour or transparency, which shows the picture."""
    import imagecodecs

    def writer(values: np.ndarray) -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            path = path.with_suffix(".png")
            path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))
            return path

        return write

    alpha = np.full((ROWS, COLUMNS, 1), 77, np.uint16)
    colour = np.repeat(TWELVE[..., None], 3, axis=2)
    return {
        "grey_16": writer(TWELVE),
        "rgb_16": writer(colour),
        "rgba_16": writer(np.concatenate([colour, alpha], axis=2)),
        "grey_alpha_16": writer(np.concatenate([TWELVE[..., None], alpha], axis=2)),
        "grey_8": writer(picture(8).astype(np.uint8)),
        "rgb_8": writer(np.repeat(picture(8).astype(np.uint8)[..., None], 3, axis=2)),
    }


def agreement(found: np.ndarray, bits: int = 12) -> float:
    """Correlation with the picture."""
    return float(np.corrcoef(np.asarray(found, float).ravel(), picture(bits).ravel())[0, 1])


def main(folder: Path) -> None:
    """Write and read every file; print what it gives, and keep a contact sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    seen = []
    for kind, files in (("dicom", RIGHT), ("padded", PADDED), ("tiff", tiff_files()), ("png", png_files())):
        for name, write in files.items():
            try:
                path = write(folder / f"{kind}_{name}")
                image = decode_image(path)
                prepared = preprocess(image.pixels, 64)
                seen.append(prepared)
                said = f"r = {agreement(image.pixels):+.4f} {image.pixels.dtype} {image.flags + odd(image.pixels, prepared)}"
            except InputError as error:
                said = str(error)
            print(f"{kind:7s} {name:32s} {said}")
    sheet = np.zeros((-(-len(seen) // 16) * 66, 16 * 66), np.uint8)
    for place, image in enumerate(seen):
        row, column = divmod(place, 16)
        sheet[row * 66 : row * 66 + 64, column * 66 : column * 66 + 64] = image
    Image.fromarray(sheet).save(folder / "contact_sheet.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
