"""Read DICOM files: grey values as a radiologist would see them, and the few tags that a manifest needs.

Only the tags named in this module are read. Names, addresses and free text of a header never enter the
program, so they cannot leave it in a log, an error message or a report.

Source: DICOM PS3.3, C.7.6.3 (image pixel), C.8.11 (digital X-ray), C.11 (look-up tables and windows).
"""

import dataclasses
import datetime
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
from jaxtyping import Num
from PIL import Image
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut, apply_windowing
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

from jaxcxr.errors import InputError

RADIOGRAPHY_MODALITIES: tuple[str, ...] = ("CR", "DX", "RG", "OT")
"""DICOM modalities of chest radiographs (computed, digital, film, other); a file without a modality passes.
"""

MAX_PIXELS = 200_000_000
"""A radiograph has about 20 million pixels; a header that claims ten times as many is damaged or hostile."""

MAX_AGE = 120.0
"""Largest plausible age in years (NIH ChestX-ray14 had 414, the RSNA challenge has 155)."""

_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PIXEL_TAGS = (
    "TransferSyntaxUID", "SOPClassUID", "Modality", "ImageType", "ConversionType", "BurnedInAnnotation",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelData", "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept",
    "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth",
    "PresentationLUTShape", "PatientOrientation",
)  # fmt: skip
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
_QUOTED = re.compile(r"""(?<!\w)b?(?:'[^']*'|"[^"]*")""")
_DAMAGE = (
    RuntimeError, AttributeError, KeyError, IndexError, TypeError, ValueError, OSError, EOFError,
    ArithmeticError, MemoryError, NotImplementedError, struct.error, zlib.error, BytesLengthException,
)  # fmt: skip
"""What pydicom and its decoders raise for damaged files."""


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """Grey values of one image file, with remarks about it.

    Attributes:
        pixels: bright where the radiograph is bright (bone), not yet scaled.
        flags: remarks for the user, in fixed wordings that quote nothing from the file.
    """

    pixels: Num[np.ndarray, "height width"]
    flags: tuple[str, ...] = ()


def is_dicom(path: Path, head: bytes) -> bool:
    """Whether a file claims to be DICOM, by its magic bytes or its name; `head` is its first 132 bytes."""
    return head[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom")


def read_dicom(path: Path) -> DecodedImage:
    """Read one frontal radiograph; return its grey values and flags.

    In this order: bits beyond `BitsStored` are cut off; padding becomes the darkest value; the modality
    look-up table or rescaling is applied, then the VOI look-up table or the first window; an image meant to
    be shown inverted is inverted (the presentation look-up table's shape decides, else MONOCHROME1); an image
    stored rotated or mirrored (`PatientOrientation`) is put upright, the patient's right side on the left.

    Raises:
        InputError: the file holds no usable image; the message quotes technical tags only.
    """
    with silent():
        dataset = _open(path, _PIXEL_TAGS)
        try:
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


def age_years(text: str) -> float:
    """Years of a DICOM age such as `058Y`, `58`, `18M`, `003W` or `010D`; NaN for an empty text.

    Raises:
        ValueError: anything else.
    """
    text = text.strip().upper()
    if not text:
        return float("nan")
    match = re.fullmatch(r"(\d{1,4}(?:\.\d+)?)([YMWD]?)", text, flags=re.ASCII)
    if match is None:
        raise ValueError("expected an age such as 058Y, 58, 18M, 003W or 010D")
    return float(match[1]) / {"Y": 1.0, "": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}[match[2]]


def years_between(birth: str, examination: str) -> float:
    """Years between two DICOM dates (`19400305`, `1940.03.05`, `1940-03-05`); NaN if one is not a date."""
    first, last = _date(birth), _date(examination)
    if first is None or last is None or last < first:
        return float("nan")
    return (last - first).days / 365.25


def plausible_age(age: float) -> float:
    """The age itself, or NaN if it is negative or above `MAX_AGE`."""
    return age if 0 <= age <= MAX_AGE else float("nan")


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
    try:
        return pydicom.dcmread(path, specific_tags=list(keywords), stop_before_pixels=stop_before_pixels)
    except InvalidDicomError as error:
        raise InputError(f"{path}: not a DICOM file (no 'DICM' mark at byte 128)") from error
    # The message of a parsing error may quote the header, so only its type is passed on.
    except _DAMAGE as error:
        raise InputError(f"{path}: DICOM whose header cannot be read ({type(error).__name__})") from None


def _require_radiograph(dataset: pydicom.Dataset, path: Path) -> None:
    modality = str(dataset.get("Modality") or "")
    if modality and modality not in RADIOGRAPHY_MODALITIES:
        shown = repr(modality) if re.fullmatch(r"[A-Z]{2,8}", modality) else "of another form"
        raise InputError(
            f"{path}: DICOM modality {shown}, expected one of {', '.join(RADIOGRAPHY_MODALITIES)}"
        )
    if "PixelData" not in dataset:
        raise InputError(f"{path}: DICOM without pixel data, expected a radiograph")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise InputError(f"{path}: DICOM of {int(dataset.NumberOfFrames)} frames, expected one")
    rows, columns = int(dataset.Rows or 0), int(dataset.Columns or 0)
    if not rows or not columns:
        raise InputError(f"{path}: the image is empty, {columns} x {rows} pixels")
    if rows * columns > MAX_PIXELS:
        raise InputError(
            f"{path}: an image of {columns} x {rows} pixels, expected at most {MAX_PIXELS} pixels"
        )
    syntax, bits = dataset.file_meta.TransferSyntaxUID, int(dataset.BitsStored)
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
    bits, high = int(dataset.BitsStored), int(dataset.get("HighBit", dataset.BitsStored - 1))
    # pydicom would cut off the high bits, which hold values in some images and compression errors in lossy
    # ones.
    stored = pixel_array(dataset, correct_unused_bits=False)
    if stored.ndim == 3:
        return DecodedImage(
            np.asarray(Image.fromarray(stored).convert("L")), (*flags, "colour image made grey")
        )
    interpretation = str(dataset.PhotometricInterpretation)
    if interpretation not in ("MONOCHROME1", "MONOCHROME2"):
        shown = repr(interpretation) if interpretation in _COLOURS else "of another form"
        raise InputError(
            f"{path}: DICOM photometric interpretation {shown}, expected MONOCHROME1 or MONOCHROME2"
        )
    stored = _significant(stored, bits, high, dataset)
    padding = _padding(stored, dataset)
    values, remarks = _seen_through_window(apply_modality_lut(stored, dataset), dataset, padding)
    inverted, remark = _is_inverted(interpretation, str(dataset.get("PresentationLUTShape") or ""))
    inside = values[~padding] if padding.any() and not padding.all() else values
    if inverted:
        values = (
            inside.max() - values
            if np.issubdtype(values.dtype, np.floating)
            else int(inside.max()) - values.astype(np.int64)
        )
        darkest = 0
    else:
        darkest = inside.min()
    if padding.any() and not padding.all():
        values = np.where(padding, darkest, values)
    upright, turned = _upright(values, dataset.get("PatientOrientation"))
    return DecodedImage(upright, (*flags, *remarks, *remark, *turned))


def _flags(dataset: pydicom.Dataset) -> list[str]:
    flags = []
    if str(dataset.get("BurnedInAnnotation") or "").upper() == "YES":
        flags.append("burnt-in annotation: the pixels may show who the patient is")
    if str(dataset.get("SOPClassUID") or "").startswith(_SECONDARY_CAPTURE) or dataset.get("ConversionType"):
        flags.append("secondary capture")
    return flags


def _significant(stored: np.ndarray, bits: int, high: int, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored values without bits that do not belong to the pixel (old overlays, say), sign-extended."""
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


def _padding(stored: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Mask of the pixels that the header declares as padding."""
    first = dataset.get("PixelPaddingValue")
    if first is None or isinstance(first, (bytes, str)):
        return np.zeros(stored.shape, dtype=bool)
    last = dataset.get("PixelPaddingRangeLimit")
    last = first if last is None or isinstance(last, (bytes, str)) else last
    low, high = sorted((int(first), int(last)))
    return (stored >= low) & (stored <= high)


def _seen_through_window(
    values: np.ndarray, dataset: pydicom.Dataset, padding: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Values through the VOI look-up table or window (skipped if it leaves one grey value), and remarks."""
    inside = ~padding if not padding.all() else np.ones(padding.shape, dtype=bool)
    if "VOILUTSequence" in dataset and len(dataset.VOILUTSequence):
        seen = apply_voi_lut(_whole(values), dataset, prefer_lut=True)
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        width = dataset.WindowWidth
        width = float(width[0] if isinstance(width, (list, tuple, MultiValue)) else width)
        # A linear window is at least 1 wide, an exact or sigmoid one wider than 0 (PS3.3 C.11.2.1.2).
        exact = str(dataset.get("VOILUTFunction") or "LINEAR") != "LINEAR"
        if not (width > 0 if exact else width >= 1):
            return values, ["invalid window ignored"]
        seen = apply_windowing(values, dataset)
    else:
        return values, []
    if np.ptp(seen[inside]) == 0 and np.ptp(values[inside]) != 0:
        return values, ["window outside the image's values ignored"]
    return seen, []


def _whole(values: np.ndarray) -> np.ndarray:
    """Grey values as integers, which index a look-up table."""
    return values if np.issubdtype(values.dtype, np.integer) else np.rint(values).astype(np.int64)


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


def _date(text: str) -> datetime.date | None:
    digits = re.sub(r"[.\-/]", "", text.strip())[:8]
    try:
        return datetime.datetime.strptime(digits, "%Y%m%d").date() if len(digits) == 8 else None
    except ValueError:
        return None


def message_of(error: BaseException) -> str:
    """A library's error message without quotations: damage can move a patient's name into any tag."""
    return " ".join(_QUOTED.sub("...", str(error)).split()) or type(error).__name__
