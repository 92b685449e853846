"""Read PNG, JPEG and TIFF: grey values as the file's photometric interpretation defines them, with all bits.

Pillow reads PNG and JPEG. Two kinds it would spoil silently are read otherwise: colour PNG of 16 bits, of
which it keeps 8, and TIFF, whose 'white is zero' it follows at 8 bits only. tifffile (with imagecodecs) reads
every TIFF, whatever its depth, byte order, tiling, predictor and compression.

Source: TIFF 6.0 (Adobe, 1992): photometric interpretation, sample format, orientation; PNG (W3C), 11.2.2.
"""

import io
import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcxr.data.decoded import MAX_PIXELS, DecodedImage, grey_of, inverted, message_of
from jaxcxr.errors import InputError

_FORMATS = ("PNG", "JPEG")
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_MARK = b"\x89PNG\r\n\x1a\n"
_DAMAGE = (
    OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError,
    ArithmeticError, MemoryError, RuntimeError, AssertionError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What Pillow, tifffile and imagecodecs raise for damaged files, the bomb error for absurd dimensions."""


def read_picture(path: Path, start: bytes, whole: bool) -> DecodedImage:
    """Grey values and flags of a PNG, JPEG or TIFF file.

    Args:
        path: the file.
        start: its first bytes.
        whole: whether `start` is all of it.

    Raises:
        InputError: it is of another format, damaged, has several images, or a kind of pixel that is none.
    """
    try:
        if start[:4] in _TIFF_MARKS:
            return _tiff(path, io.BytesIO(start) if whole else path)
        return _pillow(path, start, whole)
    except InputError:
        raise
    except _DAMAGE as error:
        # Pillow would name the memory that it read from.
        why = (
            "the image cannot be identified"
            if isinstance(error, UnidentifiedImageError)
            else message_of(error)
        )
        raise InputError(f"{path}: cannot be read as PNG, JPEG, TIFF or DICOM ({why})") from error


def _pillow(path: Path, start: bytes, whole: bool) -> DecodedImage:
    # Small files are decoded from memory: one read is cheaper than many.
    with Image.open(io.BytesIO(start) if whole else path, formats=_FORMATS) as picture:
        _check_size(path, picture.width, picture.height)
        if getattr(picture, "n_frames", 1) != 1:
            raise InputError(
                f"{path}: found an image of {getattr(picture, 'n_frames', '?')} frames, expected one"
            )
        if _is_deep_colour(start):
            deep = imagecodecs.png_decode(start if whole else path.read_bytes())
            turn = picture.getexif().get(ExifTags.Base.Orientation, 1)
            return DecodedImage(_turned(grey_of(deep), turn))
        picture.load()
        upright = picture
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith(("I", "F")) or upright.mode == "L":
            return DecodedImage(np.asarray(upright))
        return DecodedImage(np.asarray(upright.convert("L")))


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{path}: an image of {width} x {height} pixels, expected at most {MAX_PIXELS}")


def _is_deep_colour(start: bytes) -> bool:
    """Whether this is a PNG of 16 bits with colours (2, 6) or transparency (4), of which Pillow keeps 8."""
    return start[:8] == _PNG_MARK and len(start) > 25 and start[24] == 16 and start[25] in (2, 4, 6)


def _tiff(path: Path, source: Any) -> DecodedImage:
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # its messages quote the file
    try:
        with tifffile.TiffFile(source) as file:
            # Thumbnails and masks (NewSubfileType) are no images of their own.
            pages = [page for page in file.pages if not int(getattr(page, "subfiletype", 0) or 0) & 5]
            if len(pages) != 1:
                raise InputError(f"{path}: found an image of {len(pages)} frames, expected one")
            page: Any = pages[0].aspage()
            _check_size(path, page.imagewidth, page.imagelength)
            if page.imagedepth != 1:
                raise InputError(f"{path}: found an image of {page.imagedepth} layers in depth, expected one")
            if not page.imagewidth * page.imagelength:
                raise InputError(f"{path}: the image is empty, {page.imagewidth} x {page.imagelength} pixels")
            return _of_page(path, page)
    finally:
        logger.setLevel(level)


def _of_page(path: Path, page: Any) -> DecodedImage:
    missing = [size for size in page.databytecounts if size == 0]
    if missing or len(page.databytecounts) < len(page.dataoffsets) or not page.dataoffsets:
        raise InputError(
            f"{path}: cannot be read as PNG, JPEG, TIFF or DICOM (parts of its pixels are missing)"
        )
    end = page.parent.filehandle.size
    if any(offset + size > end for offset, size in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise InputError(f"{path}: cannot be read as PNG, JPEG, TIFF or DICOM (its end is missing)")
    kind = tifffile.PHOTOMETRIC(page.photometric)
    values = np.asarray(page.asarray())
    turn = int(page.tags.valueof("Orientation", 1) or 1)
    if np.iscomplexobj(values):
        raise InputError(f"{path}: a TIFF of complex numbers, expected grey values")
    if page.planarconfig == 2 and page.samplesperpixel > 1:  # one plane per channel
        values = np.moveaxis(values.reshape(-1, page.imagelength, page.imagewidth), 0, -1)
    else:
        values = values.reshape(page.imagelength, page.imagewidth, -1)
    if values.dtype.kind == "b":
        values = values.astype(np.uint8)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    name = kind.name
    if name in ("MINISBLACK", "MINISWHITE"):
        grey = np.ascontiguousarray(values[..., 0])
        return DecodedImage(_turned(_white_is_bright(grey, page, name), turn))
    if name == "PALETTE":
        table = np.asarray(page.colormap)
        index = values[..., 0].astype(np.int64)
        if table.ndim != 2 or index.min(initial=0) < 0 or index.max(initial=0) >= table.shape[1]:
            raise InputError(
                f"{path}: a TIFF whose palette does not cover its pixels, expected one that does"
            )
        colour = _of_8_bits(table)[:, index].transpose(1, 2, 0)
    elif name in ("RGB", "YCBCR") and values.shape[-1] >= 3:
        if name == "YCBCR" and page.compression not in (6, 7):
            raise InputError(
                f"{path}: a TIFF of YCbCr without JPEG compression, expected grey, RGB or a palette"
            )
        colour = values
    elif name == "SEPARATED" and values.shape[-1] >= 4 and values.dtype.kind == "u":
        colour = _of_inks(values)
    else:
        raise InputError(
            f"{path}: a TIFF of photometric interpretation {name}, expected grey, RGB or a palette"
        )
    return DecodedImage(_turned(grey_of(colour), turn))


def _of_8_bits(table: np.ndarray) -> np.ndarray:
    """A palette of 16 bits as one of 8 if it says no more."""
    for times in (257, 256):
        if not (table % times).any():
            return (table // times).astype(np.uint8)
    return table


def _white_is_bright(grey: np.ndarray, page: Any, name: str) -> np.ndarray:
    if name == "MINISBLACK":
        return grey
    bits = page.bitspersample
    if grey.dtype.kind == "u" and isinstance(bits, int) and bits < grey.dtype.itemsize * 8:
        return ((1 << bits) - 1) - grey  # 1, 4 or 12 bits, kept in bytes or words
    return inverted(grey)


def _of_inks(values: np.ndarray) -> np.ndarray:
    """Red, green and blue of cyan, magenta, yellow and black."""
    top = np.iinfo(values.dtype).max
    light = top - values.astype(np.int64)
    return (light[..., :3] * light[..., 3:4] // top).astype(values.dtype)


def _turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """The image upright, from the orientation of TIFF 6.0 and EXIF (1 to 8; anything else is taken as 1)."""
    if orientation in (5, 6, 7, 8):
        values = values.T
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return np.ascontiguousarray(values)
