"""How a file becomes the square grey image that a network sees.

Source: the paper, Data Pre-processing, after Johnson et al., MIMIC-CXR-JPG: resize, shift and scale to [0, 255], equalise the
histogram; in the paper's order. Grey values are taken as their file means them: DICOM's rescaling and window are applied and
MONOCHROME1 is turned so that bone is bright, and the scaling makes 10 or 12 significant bits in a 16-bit file fill the range.
"""

import collections
import concurrent.futures
import logging
import multiprocessing
import signal
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pydicom
from jaxtyping import Num, UInt8
from PIL import Image, ImageOps
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from skimage import exposure

from jaxcxr.errors import InputError

PREPROCESSING: Mapping[str, str] = MappingProxyType(
    {
        "resize": "square, bilinear with antialiasing, aspect ratio not kept",
        "scale": "minimum to 0, maximum to 255, truncated to 8 bits",
        "equalise": "histogram equalisation over 256 levels, darkest level at 0",
    }
)
"""What `preprocess` does, in order, for the record of a store."""

RADIOGRAPHY_MODALITIES: tuple[str, ...] = ("CR", "DX", "RG", "OT")
"""DICOM modalities that can hold a chest radiograph (computed, digital, film, other); a file that names none passes."""

_FORMATS = ("PNG", "JPEG", "TIFF")
_DICOM_SUFFIXES = (".dcm", ".dicom")
_BATCH = 16


def read_image(path: str | Path) -> Num[np.ndarray, "height width"]:
    """Read one film from PNG, JPEG or TIFF (8 or 16 bits, grey, colour or palette) or DICOM.

    Returns:
        Grey values as UInt8, UInt16, Int32 or Float, bright where the film is bright; not yet scaled.

    Raises:
        InputError: the file is missing, no image, truncated, empty, of several frames, no radiograph by its DICOM modality, or
            compressed in a way no installed library can read.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened ({error.strerror})") from error
    is_dicom = head[128:] == b"DICM" or path.suffix.lower() in _DICOM_SUFFIXES
    pixels = _read_dicom(path) if is_dicom else _read_picture(path)
    if pixels.size == 0:
        raise InputError(f"{path}: the image is empty, {pixels.shape[1]} x {pixels.shape[0]} pixels")
    if not np.isfinite(pixels).all():
        raise InputError(f"{path}: the image holds values that are not finite, expected grey values")
    return pixels


def preprocess(image: Num[np.ndarray, "height width"], size: int) -> UInt8[np.ndarray, "{size} {size}"]:
    """Resize, scale to [0, 255] and equalise the histogram (the paper, Data Pre-processing, in its order).

    An image of one grey value throughout becomes black.

    Args:
        image: finite grey values of any type.
        size: side of the result, in pixels.
    """
    resized = Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    scaled = _to_bytes(np.asarray(resized))
    levels, _ = exposure.cumulative_distribution(scaled, nbins=256)
    return _to_bytes(levels[scaled])


def prepare_images(
    paths: Sequence[str | Path], size: int, processes: int = 1
) -> Iterator[UInt8[np.ndarray, "{size} {size}"] | InputError]:
    """Read and preprocess many files, in order.

    Args:
        paths: the files.
        size: side of the images, in pixels.
        processes: how many to use; 1 stays in this one. Memory does not grow with the number of files.

    Yields:
        For each path its image, or the error that says why there is none.
    """
    if processes == 1:
        for path in paths:
            yield _prepare(path, size)
        return
    # A fresh interpreter a worker: a fork would copy the locks of threads that libraries may have started.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        waiting: collections.deque[concurrent.futures.Future[list]] = collections.deque()
        try:
            for start in range(0, len(paths), _BATCH):
                waiting.append(pool.submit(_prepare_batch, paths[start : start + _BATCH], size))
                if len(waiting) > 2 * processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _prepare_batch(paths: Sequence[str | Path], size: int) -> list[np.ndarray | InputError]:
    return [_prepare(path, size) for path in paths]


def _prepare(path: str | Path, size: int) -> np.ndarray | InputError:
    try:
        return preprocess(read_image(path), size)
    except InputError as error:
        return error


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops its workers
    warnings.filterwarnings("ignore")
    logging.getLogger("pydicom").setLevel(logging.ERROR)


def _to_bytes(values: np.ndarray) -> np.ndarray:
    shifted = values - values.min()
    peak = shifted.max()
    if peak == 0:
        return np.zeros(values.shape, dtype=np.uint8)
    return (shifted / peak * 255).astype(np.uint8)


def _read_picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            if getattr(picture, "n_frames", 1) != 1:
                raise InputError(f"{path}: found an image of {getattr(picture, 'n_frames', '?')} frames, expected one")
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            if upright.mode.startswith(("I", "F")) or upright.mode == "L":
                return np.asarray(upright)
            return np.asarray(upright.convert("L"))
    except InputError:
        raise
    # Pillow's decoders raise all of these for damaged files, the bomb error for absurd dimensions.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as PNG, JPEG, TIFF or DICOM ({_one_line(error)})") from error


def _read_dicom(path: Path) -> np.ndarray:
    try:
        dataset = pydicom.dcmread(path)
        if "PixelData" not in dataset:
            raise InputError(f"{path}: DICOM without pixel data, expected a radiograph")
        modality = str(dataset.get("Modality") or "")
        if modality and modality not in RADIOGRAPHY_MODALITIES:
            raise InputError(f"{path}: DICOM modality {modality!r}, expected one of {', '.join(RADIOGRAPHY_MODALITIES)}")
        if int(dataset.get("NumberOfFrames") or 1) != 1:
            raise InputError(f"{path}: DICOM of {dataset.NumberOfFrames} frames, expected one")
        if not dataset.Rows or not dataset.Columns:
            raise InputError(f"{path}: the image is empty, {dataset.Columns} x {dataset.Rows} pixels")
        return _dicom_grey(dataset, path)
    except InputError:
        raise
    except InvalidDicomError as error:
        raise InputError(f"{path}: not a DICOM file (no 'DICM' mark at byte 128)") from error
    # pydicom and its decoders raise all of these for damaged files.
    except (RuntimeError, AttributeError, KeyError, TypeError, ValueError, OSError, EOFError, struct.error) as error:
        raise InputError(f"{path}: DICOM that cannot be decoded ({_one_line(error)})") from error


def _dicom_grey(dataset: pydicom.Dataset, path: Path) -> np.ndarray:
    interpretation = str(dataset.PhotometricInterpretation)
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not get_decoder(syntax).is_available:
        needed = "; or ".join(" ".join(line.split()) for line in get_decoder(syntax).missing_dependencies)
        raise InputError(f"{path}: DICOM compressed as {syntax.name!r}, which needs a library that is not installed: {needed}")
    pixels = pixel_array(dataset)
    if pixels.ndim == 3:
        return np.asarray(Image.fromarray(pixels).convert("L"))
    if not interpretation.startswith("MONOCHROME"):
        raise InputError(f"{path}: DICOM photometric interpretation {interpretation!r}, expected MONOCHROME1 or MONOCHROME2")
    values = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset)
    if interpretation == "MONOCHROME1":
        values = values.max() - values
    return values


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
