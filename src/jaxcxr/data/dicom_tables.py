"""Rescaling, look-up tables and windows of DICOM: stored values as values that are meant to be seen.

Source: DICOM PS3.3, C.11.1 (modality), C.11.2 (VOI; C.11.2.1.2 and .3 define the window functions), and
C.7.6.3.1.5 and .6 (descriptors and data of tables).
"""

from typing import Any

import numpy as np
import pydicom
from jaxtyping import Bool, Num

from jaxcxr.data.dicom_elements import numbers_of

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def rescaled(
    stored: Num[np.ndarray, "height width"], dataset: pydicom.Dataset
) -> tuple[Num[np.ndarray, "height width"], list[str]]:
    """Stored values through the modality look-up table or the rescaling, and remarks.

    An absent slope is 1 and an absent intercept 0; a slope of 0, which would leave no image, is passed over.

    Raises:
        ValueError: the table cannot be read.
    """
    if "ModalityLUTSequence" in dataset:
        try:
            return _through(dataset.ModalityLUTSequence[0], stored, dataset), []
        except (AttributeError, TypeError, IndexError) as error:
            raise ValueError("its modality look-up table cannot be read") from error
    slope, intercept = _linear(dataset)
    remarks = []
    if slope == 0:
        return stored, ["rescale slope 0 ignored"]
    if slope < 0:
        remarks.append("inverted by a negative rescale slope")
    if (slope, intercept) == (1, 0):
        return stored, remarks
    return stored * slope + intercept, remarks


def _linear(dataset: pydicom.Dataset) -> tuple[float, float]:
    return (numbers_of(dataset, "RescaleSlope") or [1.0])[0], (
        numbers_of(dataset, "RescaleIntercept") or [0.0]
    )[0]


def seen(
    values: Num[np.ndarray, "height width"],
    dataset: pydicom.Dataset,
    padding: Bool[np.ndarray, "height width"],
) -> tuple[Num[np.ndarray, "height width"], list[str]]:
    """Values through the first VOI look-up table or window that shows something, and remarks."""
    inside = ~padding if not padding.all() else np.ones(padding.shape, dtype=bool)
    remarks = []
    if "VOILUTSequence" in dataset:
        try:
            shown = _through(dataset.VOILUTSequence[0], _whole(values), dataset)
            if np.ptp(shown[inside]) or not np.ptp(values[inside]):
                return shown, []
            remarks.append("VOI look-up table outside the image's values ignored")
        except (AttributeError, TypeError, IndexError, ValueError):
            remarks.append("VOI look-up table that cannot be read ignored")
    centers, widths = numbers_of(dataset, "WindowCenter"), numbers_of(dataset, "WindowWidth")
    if not centers and not widths:
        return values, remarks
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function not in FUNCTIONS:
        remarks.append("unknown VOI function taken as linear")
        function = "LINEAR"
    # A linear window is at least 1 wide, an exact or sigmoid one wider than 0.
    if not centers or not widths or not (widths[0] >= 1 if function == "LINEAR" else widths[0] > 0):
        return values, [*remarks, "invalid window ignored"]
    shown = _windowed(values, centers[0], widths[0], function, _range(values, dataset))
    if np.ptp(shown[inside]) == 0 and np.ptp(values[inside]) != 0:
        return values, [*remarks, "window outside the image's values ignored"]
    return shown, remarks


def _windowed(
    values: np.ndarray, center: float, width: float, function: str, ends: tuple[float, float]
) -> np.ndarray:
    low, high = ends
    x = values.astype(np.float64)
    if function == "SIGMOID":
        # Beyond 700 the exponential would overflow; its share is 0 long before.
        share = 1 / (1 + np.exp(np.clip(-4 * (x - center) / width, -700, 700)))
    elif function == "LINEAR_EXACT":
        share = np.clip((x - center) / width + 0.5, 0, 1)
    elif width == 1:
        share = (x > center - 0.5).astype(np.float64)
    else:
        share = np.clip((x - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return share * (high - low) + low


def _range(values: np.ndarray, dataset: pydicom.Dataset) -> tuple[float, float]:
    """Smallest and largest value that an image of this header can have; a window is spread over them."""
    if "ModalityLUTSequence" in dataset:
        return 0.0, 2.0 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if values.dtype.kind == "f" and "BitsStored" not in dataset:
        return float(values.min()), float(values.max())
    bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
    lowest = -(2.0 ** (bits - 1)) if signed else 0.0
    slope, intercept = _linear(dataset)
    slope = slope or 1.0
    low, high = sorted((lowest * slope + intercept, (lowest + 2.0**bits - 1) * slope + intercept))
    return low, high


def _through(item: Any, values: np.ndarray, dataset: pydicom.Dataset) -> np.ndarray:
    """Values through the table of one item of a look-up table sequence; values beyond it take its ends.

    The first mapped value is signed if the values are, whatever its representation says.
    """
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries & 0xFFFF or 65536
    lowest, highest = int(values.min()), int(values.max())
    if first >= 32768 and lowest < 0:
        first -= 65536
    elif first < 0 and first + entries <= 0 <= lowest:
        first += 65536
    table = _entries(item.LUTData, entries, bits, dataset)
    if highest < first or lowest >= first + entries:
        raise ValueError("a table that none of the values is in")
    return table[np.clip(values.astype(np.int64) - first, 0, entries - 1)]


def _entries(data: Any, entries: int, bits: int, dataset: pydicom.Dataset) -> np.ndarray:
    if isinstance(data, bytes):
        little = dataset.original_encoding[1] is not False
        narrow = bits <= 8 and len(data) in (entries, entries + 1)
        table = np.frombuffer(data, "u1" if narrow else "<u2" if little else ">u2", count=entries)
    else:
        table = np.atleast_1d(np.array(data, dtype=np.int64))[:entries] & 0xFFFF
    if len(table) != entries or not 1 <= bits <= 16:
        raise ValueError("a table shorter than its descriptor says")
    return table.astype(np.uint16)


def _whole(values: np.ndarray) -> np.ndarray:
    """Grey values as integers, which index a look-up table."""
    return values if np.issubdtype(values.dtype, np.integer) else np.rint(values).astype(np.int64)
