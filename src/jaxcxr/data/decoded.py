"""What every reader of image files returns, and what is said of an image that is odd.

Nothing here depends on the file's format: `jaxcxr.data.pictures` reads PNG, JPEG and TIFF, and
`jaxcxr.data.dicom` reads DICOM.
"""

import dataclasses
import re

import numpy as np
from jaxtyping import Num
from PIL import Image
from pydicom.datadict import keyword_dict

MAX_PIXELS = 200_000_000
"""A radiograph has about 20 million pixels; a header that claims ten times as many is damaged or hostile."""

FEW_LEVELS = 32
"""An image with fewer grey values than this is named in flagged.csv."""

COLOUR = "colour image made grey"
_LUMA = (19595, 38470, 7471)  # ITU-R BT.601, of 65,536, as Pillow's convert("L")
_QUOTED = re.compile(r"""(?<!\w)b?(?:'([^']*)'|"([^"]*)")""")
_TYPES = frozenset(
    (
        "NoneType",
        "int",
        "float",
        "str",
        "bytes",
        "list",
        "tuple",
        "MultiValue",
        "DSfloat",
        "IS",
        "DataElement",
    )
)


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """Grey values of one image file, with remarks about it.

    Attributes:
        pixels: bright where the radiograph is bright (bone), not yet scaled.
        flags: remarks for the user, in fixed wordings that quote nothing from the file.
    """

    pixels: Num[np.ndarray, "height width"]
    flags: tuple[str, ...] = ()


def grey_of(colour: Num[np.ndarray, "height width channels"]) -> Num[np.ndarray, "height width"]:
    """Luma of red, green and blue (a fourth channel, transparency, is ignored), with all of its bits.

    Grey and transparency (two channels) give the grey. The type of the values is kept.
    """
    if colour.shape[-1] < 3:
        return np.ascontiguousarray(colour[..., 0])
    if np.issubdtype(colour.dtype, np.floating) or colour.dtype.itemsize > 4:
        channels = colour[..., :3].astype(np.float64)
        return channels @ (np.array(_LUMA) / 65536)
    red, green, blue = (colour[..., place].astype(np.int64) * _LUMA[place] for place in range(3))
    return ((red + green + blue + 32768) >> 16).astype(colour.dtype)


def inverted(values: Num[np.ndarray, "height width"]) -> Num[np.ndarray, "height width"]:
    """Grey values with white and black exchanged, within the range of an integer type or of floats found."""
    if np.issubdtype(values.dtype, np.floating):
        return (values.max() + values.min()) - values if values.size else values
    return ~values  # the largest value becomes the smallest, with and without sign


def odd(pixels: Num[np.ndarray, "height width"], prepared: Num[np.ndarray, "size size"]) -> tuple[str, ...]:
    """Remarks about an image of few grey values, as it was decoded or, for want of those, as prepared.

    An ordinary file whose prepared image has few values was squeezed by something at the end of its range,
    such as a marker or an undeclared border.
    """
    decoded = few_levels(pixels)
    if decoded is not None:
        return (decoded,)
    after = few_levels(prepared)
    return () if after is None else (f"after preparation {after}",)


def few_levels(values: Num[np.ndarray, "height width"]) -> str | None:
    """The remark about an image with one or fewer than 32 grey values; None for an ordinary one."""
    flat = values.ravel()
    # A few thousand pixels settle the question for nearly every image.
    if len(flat) > 8192 and len(np.unique(flat[:: len(flat) // 4096])) >= FEW_LEVELS:
        return None
    levels = _levels(flat)
    if levels == 1:
        return "constant: all pixels have one grey value"
    return f"only {levels} grey values" if levels < FEW_LEVELS else None


def _levels(flat: np.ndarray) -> int:
    if flat.dtype == np.uint8:
        return int(np.count_nonzero(Image.fromarray(flat.reshape(1, -1)).histogram()))
    return len(np.unique(flat))


def message_of(error: BaseException) -> str:
    """A library's error message without quotations: damage can move a patient's name into any tag.

    Names of DICOM elements and of Python types stay, since they are nobody's.
    """
    return " ".join(_QUOTED.sub(_quoted, str(error)).split()) or type(error).__name__


def _quoted(match: re.Match[str]) -> str:
    text = match[1] if match[1] is not None else match[2]
    return repr(text) if text in keyword_dict or text in _TYPES else "..."
