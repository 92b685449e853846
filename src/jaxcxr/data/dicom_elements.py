"""The elements of a DICOM header as the types that the standard gives them, whatever a file wrote.

Archives and converters write elements that are empty, hold several values where one is meant, or have another
value representation (a window as text, a slope as an integer). Here each becomes the one number, numbers or
code that it stands for, or is taken away like an absent one, before anything is computed from it.

Source: DICOM PS3.3, C.7.6.3 (image pixel), C.11 (look-up tables and windows); PS3.5, 6.2 (representations).
"""

import math
import struct
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Bool, Num
from pydicom.config import IGNORE
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.errors import BytesLengthException
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

_WHOLE = {
    "Rows": "US", "Columns": "US", "NumberOfFrames": "IS", "SamplesPerPixel": "US",
    "PlanarConfiguration": "US", "BitsAllocated": "US", "BitsStored": "US", "HighBit": "US",
    "PixelRepresentation": "US",
}  # fmt: skip
_NUMBERS = (
    "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "FloatPixelPaddingValue", "FloatPixelPaddingRangeLimit",
    "DoubleFloatPixelPaddingValue", "DoubleFloatPixelPaddingRangeLimit",
)  # fmt: skip
_CODES = (
    "Modality", "PhotometricInterpretation", "VOILUTFunction", "PresentationLUTShape", "BurnedInAnnotation",
    "ConversionType", "SOPClassUID",
)  # fmt: skip
_TABLES = ("ModalityLUTSequence", "VOILUTSequence")
ELEMENTS: tuple[str, ...] = (
    "TransferSyntaxUID", *_WHOLE, *_NUMBERS, *_CODES, *_TABLES, "ImageType", "PatientOrientation",
    "PixelData", "FloatPixelData", "DoubleFloatPixelData",
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)  # fmt: skip
"""Keywords of all elements that decoding an image reads; no other element of a file is looked at."""
_DAMAGE = (
    AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, NotImplementedError,
    struct.error, BytesLengthException,
)  # fmt: skip
_THREE = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")


def normalise(dataset: pydicom.Dataset) -> None:
    """Replace the elements of `dataset` by what they stand for; those that stand for nothing are removed.

    Afterwards whole numbers are `int`, the elements of `_NUMBERS` lists of finite `float`, codes upper-case
    text, and the transfer syntax, the number of samples and the sign have the values that an absent one
    means.

    Raises:
        ValueError: an element of `_NUMBERS` holds something else; the message has its keyword alone.
    """
    for keyword, vr in _WHOLE.items():
        found = _numbers(_value(dataset, keyword)) or []
        whole = [int(number) for number in found[:1] if number == int(number) and number >= 0]
        _set(dataset, keyword, vr, whole[0] if whole else None)
    for keyword in _NUMBERS:
        found = _numbers(_value(dataset, keyword))
        if found is None:
            raise ValueError(f"{keyword} is not a number")
        _set(dataset, keyword, "FD", found or None)
    for keyword in _CODES:
        texts = _texts(_value(dataset, keyword))
        code = texts[0] if keyword == "SOPClassUID" else " ".join(texts[0].upper().split()) if texts else ""
        _set(dataset, keyword, "LO", code or None)
    _set(dataset, "PatientOrientation", "LO", _texts(_value(dataset, "PatientOrientation"))[:2] or None)
    for keyword in _TABLES:
        items = _value(dataset, keyword)
        if keyword in dataset and not (isinstance(items, pydicom.Sequence) and len(items)):
            del dataset[keyword]
    _complete(dataset)


def _complete(dataset: pydicom.Dataset) -> None:
    """Values of absent elements that only one value is possible for."""
    interpretation = dataset.get("PhotometricInterpretation", "")
    if "SamplesPerPixel" not in dataset:
        dataset.SamplesPerPixel = 3 if interpretation in _THREE else 1
    if "PixelRepresentation" not in dataset:
        dataset.PixelRepresentation = 0
    if dataset.SamplesPerPixel > 1 and "PlanarConfiguration" not in dataset:
        dataset.PlanarConfiguration = 0
    if not str(dataset.file_meta.get("TransferSyntaxUID") or "").strip():
        implicit, little = dataset.original_encoding
        native = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else native
    if not dataset.file_meta.TransferSyntaxUID.is_compressed:
        _as_long_as_it_is(dataset)


def _as_long_as_it_is(dataset: pydicom.Dataset) -> None:
    """Whether YBR_FULL is subsampled, from the length of the pixels where name and length disagree."""
    name = dataset.get("PhotometricInterpretation")
    if name not in ("YBR_FULL", "YBR_FULL_422") or "PixelData" not in dataset:
        return
    pixels = int(dataset.get("Rows", 0)) * int(dataset.get("Columns", 0))
    width = -(-int(dataset.get("BitsAllocated", 8)) // 8)
    length = len(dataset.PixelData)
    for other, bytes_each in (("YBR_FULL", 3 * width), ("YBR_FULL_422", 2 * width)):
        expected = pixels * bytes_each
        if expected and length in (expected, expected + expected % 2):
            dataset.PhotometricInterpretation = other


def numbers_of(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """The numbers of an element of a normalised header; empty if it is absent."""
    found = dataset.get(keyword)
    if found is None:
        return []
    return [float(found)] if isinstance(found, (int, float)) else [float(number) for number in found]


def is_padding(
    raw: Num[np.ndarray, "*shape"], values: Num[np.ndarray, "*shape"], dataset: pydicom.Dataset, bits: int
) -> Bool[np.ndarray, "*shape"]:
    """Mask of the pixels that the header declares as padding.

    The declared value may have the other sign than the pixels (63536 for -2000), and pixels may carry it in
    all bits allocated although fewer are stored, so it is compared modulo the stored width.

    Args:
        raw: pixels as they lie in the file.
        values: the same without bits that do not belong to them, sign-extended.
        dataset: normalised header.
        bits: stored.
    """
    prefix = {4: "Float", 8: "DoubleFloat"}[raw.dtype.itemsize] if raw.dtype.kind == "f" else ""
    first = numbers_of(dataset, f"{prefix}PixelPaddingValue")[:1]
    last = numbers_of(dataset, f"{prefix}PixelPaddingRangeLimit")[:1] or first
    if not first:
        return np.zeros(raw.shape, dtype=bool)
    if prefix:
        low, high = (raw.dtype.type(end) for end in sorted((first[0], last[0])))
        return (values >= low) & (values <= high)
    ends = [int(first[0]), int(last[0])]
    info = np.iinfo(raw.dtype)
    width = raw.dtype.itemsize * 8
    found = _between(values, ends) | _between(raw, [_modulo(end, width, bool(info.min)) for end in ends])
    lowest = -(1 << (bits - 1)) if info.min else 0
    outside = [end for end in ends if not lowest <= end < lowest + (1 << bits)]
    if any((end < 0) != bool(info.min) for end in outside):  # of the other sign
        found |= _between(values, [_modulo(end, bits, bool(info.min)) for end in ends])
    return found


def _between(values: np.ndarray, ends: list[int]) -> np.ndarray:
    return (values >= min(ends)) & (values <= max(ends))


def _modulo(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >> (bits - 1) else value


def _set(dataset: pydicom.Dataset, keyword: str, vr: str, value: Any) -> None:
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"no element of DICOM has the keyword {keyword}")
    if value is not None:
        dataset[tag] = pydicom.DataElement(tag, vr, value, validation_mode=IGNORE)
    elif keyword in dataset:
        del dataset[keyword]


def _value(dataset: pydicom.Dataset, keyword: str) -> Any:
    """The value of an element, or its bytes if they are none of its representation."""
    if keyword not in dataset:
        return None
    element: Any = dataset.get_item(keyword)
    raw = element.value if isinstance(element, RawDataElement) else None
    try:
        return dataset[keyword].value
    except _DAMAGE:
        return raw


def _texts(value: Any) -> list[str]:
    """The values as stripped text; empty ones at the end are left out."""
    if value is None or isinstance(value, pydicom.Sequence):
        return []
    if isinstance(value, bytes):
        value = value.decode("ascii", errors="replace")
    if isinstance(value, (str, int, float)):
        parts = str(value).split("\\")
    else:
        parts = [part for item in value for part in _texts(item) or [""]]
    parts = [part.strip(" \0\t\r\n") for part in parts]
    while parts and not parts[-1]:
        parts.pop()
    return parts


def _numbers(value: Any) -> list[float] | None:
    """The numbers that a value holds; None if one of them is no finite number."""
    if isinstance(value, bytes) and len(value) in (2, 4) and not value.strip(b" \0").isdigit():
        return [float(int.from_bytes(value, "little"))]
    found = []
    for text in _texts(value):
        if not text:
            continue
        try:
            number = float(text.replace(",", ".") if text.count(",") == 1 else text)
        except ValueError:
            return None
        if not math.isfinite(number):
            return None
        found.append(number)
    return found
