"""Decode an image file and preprocess it into the square grey image that the network sees.

Source: the paper, Data Pre-processing, after Johnson et al., MIMIC-CXR-JPG: resize, shift and scale to [0,
255], equalise the histogram; in the paper's order. Grey values are read as the file defines them (for DICOM
see `jaxcxr.data.dicom`, for others
`jaxcxr.data.pictures`); scaling makes 10 or 12 significant bits of a 16-bit file fill the range.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from jaxtyping import Num, UInt
from PIL import Image

from jaxcxr.data.decoded import DecodedImage
from jaxcxr.data.dicom import RADIOGRAPHY_MODALITIES, is_dicom, read_dicom
from jaxcxr.data.pictures import read_picture
from jaxcxr.errors import InputError

__all__ = [
    "PREPROCESSING",
    "RADIOGRAPHY_MODALITIES",
    "Preprocessing",
    "decode_image",
    "preprocess",
    "read_image",
]

_AT_ONCE = 16 << 20
_FITS: Mapping[str, str] = MappingProxyType(
    {
        "squeeze": "square, bilinear with antialiasing, aspect ratio not kept",
        "pad": "square, bilinear with antialiasing, aspect ratio kept, black bars on both sides",
    }
)
_NORMALISATIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "paper": (
            "minimum to 0, maximum to 255, truncated to 8 bits",
            "histogram equalisation over 256 levels, darkest level at 0",
        ),
        "percentile": ("0.5th percentile to darkest, 99.5th to brightest", "none"),
        "none": ("full scale of the film's bits (8, 10, 12, 14 or 16) to full scale", "none"),
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing options, the same for every image.

    Attributes:
        fit: how an image becomes square: `squeeze` (the paper) or `pad`.
        normalisation: `paper` scales by minimum and maximum and equalises the histogram; `percentile` scales
            by percentiles, which a bright marker or a dark collimated edge cannot move; `none` keeps the grey
            values as they are.
        dtype: of the stored pixels; training reads `uint8`. `uint16` cannot be equalised over 256 levels.
    """

    fit: Literal["squeeze", "pad"] = "squeeze"
    normalisation: Literal["paper", "percentile", "none"] = "paper"
    dtype: Literal["uint8", "uint16"] = "uint8"

    def __post_init__(self) -> None:
        """Refuse options that cannot be combined."""
        if self.dtype == "uint16" and self.normalisation == "paper":
            raise InputError(
                "normalisation 'paper' equalises 256 levels; expected dtype 'uint8', found 'uint16'"
            )

    def described(self) -> dict[str, str]:
        """The steps of `preprocess`, in order, as `store.json` records them."""
        scale, equalise = _NORMALISATIONS[self.normalisation]
        described = {"resize": _FITS[self.fit], "scale": scale, "equalise": equalise}
        return described if self.dtype == "uint8" else {**described, "dtype": self.dtype}


PREPROCESSING: Mapping[str, str] = MappingProxyType(Preprocessing().described())
"""The paper's preprocessing, as `store.json` records it."""


def decode_image(path: str | Path) -> DecodedImage:
    """Grey values and flags of a PNG, JPEG, TIFF (of any depth; grey, colour or palette) or DICOM file.

    Raises:
        InputError: the file is missing, not an image, truncated or empty, has several frames, is not a
            radiograph by its DICOM modality, or is compressed in a way that no installed library can read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(_AT_ONCE)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{str(path)!r}: no name of a file ({error})") from error
    if is_dicom(path, start[:132]):
        decoded = read_dicom(path)
    else:
        decoded = read_picture(path, start, whole=len(start) < _AT_ONCE)
    pixels = decoded.pixels
    if pixels.size == 0:
        raise InputError(f"{path}: the image is empty, {pixels.shape[1]} x {pixels.shape[0]} pixels")
    if np.issubdtype(pixels.dtype, np.floating) and not np.isfinite(pixels).all():
        raise InputError(f"{path}: the image holds values that are not finite, expected grey values")
    return decoded


def read_image(path: str | Path) -> Num[np.ndarray, "height width"]:
    """Grey values of one image file (`decode_image`), integers or floats, not yet scaled; bone is bright."""
    return decode_image(path).pixels


def preprocess(
    image: Num[np.ndarray, "height width"], size: int, how: Preprocessing | None = None
) -> UInt[np.ndarray, "{size} {size}"]:
    """The image made square, scaled and histogram-equalised, as `how` says (the paper's steps by default).

    An image of a single grey value becomes black, unless grey values are kept (`none`).

    Args:
        image: finite grey values of any type.
        size: side of the result, in pixels.
        how: the options.
    """
    how = how or Preprocessing()
    if image.dtype == np.uint8 and image.shape == (size, size) and how == Preprocessing():
        return _of_bytes(image)
    width, height = (size, size) if how.fit == "squeeze" else _inside(image.shape[1], image.shape[0], size)
    values = np.asarray(image, dtype=np.float32)
    if values.shape != (height, width):
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    top = np.iinfo(how.dtype).max
    if how.normalisation == "paper":
        prepared = _equalised(_stretched(values, values.min(), values.max(), top))
    elif how.normalisation == "percentile":
        low, high = np.percentile(values, (0.5, 99.5))
        prepared = _stretched(np.clip(values, low, high), low, high, top)
    else:
        prepared = _full_scale(image, values, top)
    prepared = prepared.astype(how.dtype, copy=False)
    if (height, width) == (size, size):
        return prepared
    square = np.zeros((size, size), dtype=prepared.dtype)
    left, above = (size - width) // 2, (size - height) // 2
    square[above : above + height, left : left + width] = prepared
    return square


def _inside(width: int, height: int, size: int) -> tuple[int, int]:
    scale = size / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _stretched(values: np.ndarray, low: np.floating, high: np.floating, top: int) -> np.ndarray:
    shifted = values - low
    peak = high - low
    if peak == 0:
        return np.zeros(values.shape, dtype=np.uint16 if top > 255 else np.uint8)
    shifted /= peak
    shifted *= top
    return shifted.astype(np.uint16 if top > 255 else np.uint8)


def _equalised(image: np.ndarray) -> np.ndarray:
    return _through(_levels(np.array(Image.fromarray(image).histogram())), image)


def _levels(counts: np.ndarray) -> np.ndarray:
    """Look-up table of histogram equalisation: the darkest level present becomes 0, the brightest 255."""
    share = np.cumsum(counts) / counts.sum()
    darkest = share[np.flatnonzero(counts)[0]]
    if darkest == 1:
        return np.zeros(256, dtype=np.uint8)
    return np.maximum((share - darkest) / (1 - darkest) * 255, 0).astype(np.uint8)


def _through(table: np.ndarray, image: np.ndarray) -> np.ndarray:
    """`table[image]`; `bytes.translate` is three times as fast as NumPy's indexing."""
    return np.frombuffer(image.tobytes().translate(table.tobytes()), dtype=np.uint8).reshape(image.shape)


def _of_bytes(image: np.ndarray) -> np.ndarray:
    """The paper's preprocessing of 8-bit images of the right size: one look-up table scales and equalises."""
    counts = np.array(Image.fromarray(image).histogram())
    present = np.flatnonzero(counts)
    low, high = present[0], present[-1] + 1
    stretched = _stretched(np.arange(low, high, dtype=np.float32), np.float32(low), np.float32(high - 1), 255)
    table = np.zeros(256, dtype=np.uint8)
    table[low:high] = _levels(np.bincount(stretched, weights=counts[low:high], minlength=256))[stretched]
    return _through(table, image)


def _full_scale(image: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """Grey values relative to the range of their bit depth; negative values are shifted up to 0."""
    low, high = min(0.0, float(image.min())), float(image.max())
    bits = next((bits for bits in (8, 10, 12, 14, 16) if high - low <= 2**bits - 1), None)
    span = 2**bits - 1 if bits else high - low
    return np.clip((values - np.float32(low)) * np.float32(top / span), 0, top).astype(
        np.uint16 if top > 255 else np.uint8
    )
