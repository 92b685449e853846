"""Read DICOM files: grey values as a radiologist would see them, and the few tags that a manifest needs.

Only the tags named here and in `jaxcxr.data.dicom_elements` are read. Names, addresses and free text of a
header never enter the program, so they cannot leave it in a log, an error message or a report.

Source: DICOM PS3.3, C.7.6.3 (image pixel), C.8.11 (digital X-ray), C.11 (look-up tables and windows); PS3.10
(files).
"""

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSNearLossless,
    RLELossless,
)

from jaxcxr.data.decoded import COLOUR, MAX_PIXELS, DecodedImage, grey_of, message_of
from jaxcxr.data.dicom_elements import ELEMENTS, is_padding, normalise
from jaxcxr.data.dicom_tables import rescaled, seen
from jaxcxr.errors import InputError

RADIOGRAPHY_MODALITIES: tuple[str, ...] = ("CR", "DX", "RG", "OT")
"""DICOM modalities of chest radiographs (computed, digital, film, other); a file without a modality passes.
"""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_MARK = b"DICM"
# The first element of a data set without preamble: group 2 or 8 and an explicit representation or a length.
_BARE = re.compile(rb"(?s)[\x02\x08]\0.[\0-\x20](?:(?:UL|CS|UI|DA|TM|LO|OB|SH)|.{0,2}\0\0)")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = (
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_PARTIAL_422",
    "YBR_PARTIAL_420",
    "YBR_ICT",
    "YBR_RCT",
)
_OF_THE_EXTRA = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)
_LOSSY = (JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K)
_DAMAGE = (
    RuntimeError, AttributeError, KeyError, IndexError, TypeError, ValueError, OSError, EOFError,
    ArithmeticError, MemoryError, NotImplementedError, struct.error, zlib.error, BytesLengthException,
)  # fmt: skip
"""What pydicom and its decoders raise for damaged files."""


def is_dicom(path: Path, head: bytes) -> bool:
    """Whether a file claims to be DICOM, by its magic bytes, its first element or its name.

    Args:
        path: of the file.
        head: its first 132 bytes or more.
    """
    named = path.suffix.lower() in (".dcm", ".dicom")
    return named or head[128:132] == _MARK or head[:4] == _MARK or _BARE.match(head) is not None


def read_dicom(path: Path) -> DecodedImage:
    """Read one frontal radiograph; return its grey values and flags.

    In this order: bits beyond `BitsStored` are cut off; padding becomes the darkest value; the modality
    look-up table or rescaling is applied, then the VOI look-up table or the first window; colours become
    grey; an image meant to be shown inverted is inverted (the presentation look-up table's shape decides,
    else MONOCHROME1); an image stored rotated or mirrored (`PatientOrientation`) is put upright, the
    patient's right side on the left.

    Raises:
        InputError: the file holds no usable image; the message quotes technical tags only.
    """
    with silent():
        dataset = _open(path, ELEMENTS)
        try:
            normalise(dataset)
            _require_radiograph(dataset, path)
            return _decoded(dataset, path)
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(f"{path}: DICOM that cannot be decoded ({message_of(error)})") from error


def read_tags(path: Path, keywords: tuple[str, ...]) -> dict[str, str]:
    """Values of some tags, as text by keyword.

    An absent or unreadable tag is an empty text; several values are joined by a backslash; a code sequence
    gives the meaning of its first code.

    Raises:
        InputError: the file is not DICOM.
    """
    with silent():
        dataset = _open(path, keywords, stop_before_pixels=True)
        found = {}
        for keyword in keywords:
            try:
                found[keyword] = _text(dataset.get(keyword))
            except _DAMAGE:
                found[keyword] = ""
        return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, pydicom.Sequence):
        return _text(value[0].get("CodeMeaning")) if len(value) else ""
    if isinstance(value, (list, tuple, MultiValue)):
        return "\\".join(map(str, value)).strip()
    return str(value).strip()


@contextmanager
def silent() -> Iterator[None]:
    """Keep pydicom's warnings and log, which quote values of the file, off the screen."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "openjpeg", "PIL")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL + 1)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _open(path: Path, keywords: tuple[str, ...], stop_before_pixels: bool = False) -> pydicom.Dataset:
    """The header of a file, with or without preamble (PS3.10, 7.1: 128 bytes and `DICM`)."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
        bare = head[128:132] != _MARK and (head[:4] == _MARK or _BARE.match(head) is not None)
        source = io.BytesIO(path.read_bytes()[4:]) if bare and head[:4] == _MARK else path
        return pydicom.dcmread(
            source, specific_tags=list(keywords), stop_before_pixels=stop_before_pixels, force=bare
        )
    except InvalidDicomError as error:
        raise InputError(
            f"{path}: not a DICOM file (no 'DICM' mark at byte 128, and no data set at its start)"
        ) from error
    # The message of a parsing error may quote the header, so only its type is passed on.
    except _DAMAGE as error:
        raise InputError(f"{path}: DICOM whose header cannot be read ({type(error).__name__})") from None


def _require_radiograph(dataset: pydicom.Dataset, path: Path) -> None:
    modality = dataset.get("Modality", "")
    if modality and modality not in RADIOGRAPHY_MODALITIES:
        shown = repr(modality) if re.fullmatch(r"[A-Z]{2,8}", modality) else "of another form"
        raise InputError(
            f"{path}: DICOM modality {shown}, expected one of {', '.join(RADIOGRAPHY_MODALITIES)}"
        )
    if not any(keyword in dataset for keyword in _PIXELS):
        raise InputError(f"{path}: DICOM without pixel data, expected a radiograph")
    if (frames := int(dataset.get("NumberOfFrames", 1) or 1)) != 1:
        raise InputError(f"{path}: DICOM of {frames} frames, expected one")
    rows, columns = int(dataset.get("Rows", 0)), int(dataset.get("Columns", 0))
    if not rows or not columns:
        raise InputError(f"{path}: the image is empty, {columns} x {rows} pixels")
    if rows * columns > MAX_PIXELS:
        raise InputError(
            f"{path}: an image of {columns} x {rows} pixels, expected at most {MAX_PIXELS} pixels"
        )
    needed = ("BitsAllocated", "BitsStored") if "PixelData" in dataset else ("BitsAllocated",)
    for keyword in (*needed, "PhotometricInterpretation"):
        if keyword not in dataset:
            raise InputError(
                f"{path}: DICOM that cannot be decoded ({keyword} is missing, empty or no value)"
            )
    _require_decoder(dataset, path)


def _require_decoder(dataset: pydicom.Dataset, path: Path) -> None:
    syntax, bits = dataset.file_meta.TransferSyntaxUID, int(dataset.get("BitsStored", 0))
    if not syntax.is_compressed and bytes(dataset.get("PixelData", b"")[:4]) == b"\xfe\xff\x00\xe0":
        raise InputError(
            f"{path}: DICOM whose pixels are compressed and whose TransferSyntaxUID does not say how, "
            "expected one that does"
        )
    if syntax.is_compressed and not _can_decode(syntax, bits):
        if syntax in _OF_THE_EXTRA:
            needed = "pip install 'jaxcxr[lossless]' adds it"
        else:
            needed = "; or ".join(" ".join(line.split()) for line in get_decoder(syntax).missing_dependencies)
        raise InputError(
            f"{path}: DICOM of {bits} bits compressed as {syntax.name!r}, which needs a library that is not "
            f"installed: {needed}"
        )


def _can_decode(syntax: UID, bits: int) -> bool:
    decoder = get_decoder(syntax)
    if syntax == JPEGExtended12Bit and bits > 8:
        return (
            "pylibjpeg" in decoder.available_plugins
        )  # the other plugins claim this syntax too, but read 8 bits only
    return decoder.is_available


def _decoded(dataset: pydicom.Dataset, path: Path) -> DecodedImage:
    flags = _flags(dataset)
    # pydicom would cut off the high bits, which hold values in some images and compression errors in lossy
    # ones.
    raw = pixel_array(dataset, correct_unused_bits=False)
    interpretation = dataset.PhotometricInterpretation
    if interpretation == "PALETTE COLOR" and raw.ndim == 2:
        if "RedPaletteColorLookupTableDescriptor" not in dataset:
            raise InputError(f"{path}: DICOM photometric interpretation 'PALETTE COLOR' without its palette")
        raw = apply_color_lut(raw, dataset)
    if raw.ndim == 3:
        grey, turned = _upright(grey_of(raw), dataset.get("PatientOrientation"))
        return DecodedImage(grey, (*flags, COLOUR, *turned))
    if interpretation not in _GREY:
        shown = repr(interpretation) if interpretation in _COLOURS else "of another form"
        raise InputError(
            f"{path}: DICOM photometric interpretation {shown}, expected MONOCHROME1 or MONOCHROME2"
        )
    bits = int(dataset.get("BitsStored", 0))
    stored = raw if raw.dtype.kind == "f" else _significant(raw, bits, dataset)
    padding = is_padding(raw, stored, dataset, bits)
    if padding.all():
        return DecodedImage(
            np.zeros(raw.shape, np.uint8), (*flags, "all padding: no pixel differs from the padding value")
        )
    stored = np.where(padding, stored[~padding].flat[0], stored)  # no padding value shall meet a table
    values, scaled = rescaled(stored, dataset)
    values, remarks = seen(values, dataset, padding)
    is_inverted, remark = _is_inverted(interpretation, dataset.get("PresentationLUTShape", ""))
    if is_inverted:
        highest = values[~padding].max()
        whole = not np.issubdtype(values.dtype, np.floating)
        values = int(highest) - values.astype(np.int64) if whole else highest - values
    if padding.any():
        values = np.where(padding, values[~padding].min(), values)
    upright, turned = _upright(values, dataset.get("PatientOrientation"))
    return DecodedImage(upright, (*flags, *scaled, *remarks, *remark, *turned))


def _flags(dataset: pydicom.Dataset) -> list[str]:
    flags = []
    if dataset.get("BurnedInAnnotation") == "YES":
        flags.append("burnt-in annotation: the pixels may show who the patient is")
    if str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE) or dataset.get("ConversionType"):
        flags.append("secondary capture")
    return flags


def _significant(stored: np.ndarray, bits: int, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored values without bits that do not belong to the pixel (old overlays, say), sign-extended."""
    high = int(dataset.get("HighBit", bits - 1))
    width = stored.dtype.itemsize * 8
    if not 1 <= bits <= width or not bits - 1 <= high < width:
        raise ValueError(f"{bits} bits stored up to bit {high} in {width}")
    if bits == width:
        return stored
    syntax, signed = dataset.file_meta.TransferSyntaxUID, dataset.PixelRepresentation == 1
    # Signed values compressed as unsigned have -1 at the top of the unsigned range.
    if syntax in _LOSSY and not (signed and stored.max() >= 3 << (bits - 2)):
        # A compression error may lift white above the range; cutting off its high bit would make it black.
        lowest = -(1 << (bits - 1)) if signed else 0
        return np.clip(stored, lowest, lowest + (1 << bits) - 1)
    # RLE keeps the bits as they lay in memory; other compressions store a number.
    shift = high - bits + 1 if syntax == RLELossless or not syntax.is_compressed else 0
    field = (stored.astype(np.int64) >> shift) & ((1 << bits) - 1)
    if signed:
        field = np.where(field >> (bits - 1), field - (1 << bits), field)
    return field.astype(stored.dtype)


def _is_inverted(interpretation: str, shape: str) -> tuple[bool, list[str]]:
    by_photometry = interpretation == "MONOCHROME1"
    if shape not in ("IDENTITY", "INVERSE"):
        return by_photometry, []
    inverted = shape == "INVERSE"
    disagree = ["photometric interpretation and presentation shape disagree; the shape was followed"]
    return inverted, disagree if inverted != by_photometry else []


def _upright(values: np.ndarray, orientation: Any) -> tuple[np.ndarray, list[str]]:
    """The image turned so that rows run to the patient's left and columns to the feet, and remarks."""
    if not isinstance(orientation, (list, tuple, MultiValue)) or len(orientation) != 2:
        return values, []
    along_row, along_column = (str(direction)[:1].upper() for direction in orientation)
    if along_row in ("H", "F") and along_column in ("L", "R"):
        values = values.T
        along_row, along_column = along_column, along_row
    elif not (along_row in ("L", "R") and along_column in ("H", "F")):
        return values, []
    else:
        if (along_row, along_column) == ("L", "F"):
            return values, []
    if along_row == "R":
        values = values[:, ::-1]
    if along_column == "H":
        values = values[::-1]
    return np.ascontiguousarray(values), ["turned or mirrored upright by its patient orientation"]
