"""DICOM in the compressed forms that archives hand out; those that need `jaxcxr[lossless]` are refused or read."""

import io
from typing import Any

import jpeg_ls
import numpy as np
import pydicom
import pytest
from openjpeg.utils import encode_array
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from jaxcxr.data.images import read_image
from jaxcxr.errors import InputError
from tests.data.test_images import dicom

BITS = (8, 10, 12, 16)


def image(bits: int) -> np.ndarray:
    """Grey values over the whole range of their bits, with noise."""
    across = np.add.outer(np.arange(40.0), np.arange(35.0) * 2) / 107 + np.random.default_rng(bits).normal(
        0, 0.02, (40, 35)
    )
    return (np.clip(across * 1.2, 0, 1) * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16)


def jpeg_lossless(pixels: np.ndarray, bits: int, predictor: int) -> bytes:
    """ITU T.81, process 14: differences from a neighbour, their number of bits in a Huffman code of five bits each."""
    values = pixels.astype(int)
    left, above = np.roll(values, 1, axis=1), np.roll(values, 1, axis=0)
    corner = np.roll(above, 1, axis=1)
    expected = {
        1: left,
        2: above,
        4: left + above - corner,
        6: above + (left - corner) // 2,
        7: (left + above) // 2,
    }[predictor]
    expected[0], expected[1:, 0] = left[0], above[1:, 0]
    expected[0, 0] = 2 ** (bits - 1)
    stream = ""
    for difference in ((values - expected + 2**15) % 2**16 - 2**15).ravel():
        size = 16 if difference == -(2**15) else int(abs(difference)).bit_length()
        stream += f"{size:05b}"
        if 0 < size < 16:
            stream += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = pixels.shape
    frame = (
        b"\xff\xc3\x00\x0b"
        + bytes([bits])
        + rows.to_bytes(2, "big")
        + columns.to_bytes(2, "big")
        + b"\x01\x01\x11\x00"
    )
    table = b"\xff\xc4\x00\x24\x00" + bytes([0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    scan = b"\xff\xda\x00\x08\x01\x01\x00" + bytes([predictor, 0, 0])
    return b"\xff\xd8" + frame + table + scan + coded + b"\xff\xd9"


def written(path, pixels: np.ndarray, bits: int, syntax: UID, content: bytes):
    return dicom(path, pixels, BitsStored=bits, HighBit=bits - 1, PixelData=content, syntax=syntax)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_lossless_compression_gives_back_the_same_image(tmp_path, syntax, bits):
    dataset = pydicom.dcmread(dicom(tmp_path / "image.dcm", image(bits), BitsStored=bits, HighBit=bits - 1))
    dataset.compress(
        syntax, encoding_plugin="pydicom" if syntax == RLELossless else "", generate_instance_uid=False
    )
    dataset.save_as(tmp_path / "small.dcm")
    np.testing.assert_array_equal(read_image(tmp_path / "small.dcm"), image(bits))


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit])
def test_jpeg_of_8_bits_is_read(tmp_path, syntax):
    content = io.BytesIO()
    Image.fromarray(image(8)).save(content, "JPEG", quality=95)
    path = written(tmp_path / "image.dcm", image(8), 8, syntax, content.getvalue())
    np.testing.assert_allclose(read_image(path), np.asarray(Image.open(content)), atol=1)


@pytest.mark.parametrize(
    ("syntax", "bits"), [(JPEGLSNearLossless, 8), (JPEGLSNearLossless, 12), (JPEG2000, 8), (JPEG2000, 12)]
)
def test_lossy_compression_gives_back_nearly_the_same_image(tmp_path, syntax, bits):
    dataset = pydicom.dcmread(dicom(tmp_path / "image.dcm", image(bits), BitsStored=bits, HighBit=bits - 1))
    how: dict[str, Any] = {"jls_error": 3} if syntax == JPEGLSNearLossless else {"j2k_psnr": [60]}
    dataset.compress(syntax, generate_instance_uid=False, **how)
    dataset.save_as(tmp_path / "small.dcm")
    np.testing.assert_allclose(
        read_image(tmp_path / "small.dcm").astype(int), image(bits), atol=3 if bits == 8 else 24
    )


def test_white_that_an_error_of_the_compression_lifts_above_the_range_stays_white(tmp_path):
    """Coded as of 16 bits, 1023 of 10 bits becomes 1024 or 1025; without its high bit that would be black."""
    values = image(10)
    described = {"rows": 40, "columns": 35, "samples_per_pixel": 1, "bits_stored": 16, "bits_allocated": 16}
    content = jpeg_ls.encode_pixel_data(
        values.tobytes(), lossy_error=2, photometric_interpretation="MONOCHROME2", **described
    )
    assert jpeg_ls.decode(np.frombuffer(content, np.uint8)).max() > 1023
    path = written(tmp_path / "image.dcm", values, 10, JPEGLSNearLossless, bytes(content))
    found = read_image(path)
    np.testing.assert_allclose(found.astype(int), values, atol=2)
    assert found.max() == 1023


def near_lossless(values: np.ndarray, error: int) -> bytes:
    """JPEG-LS of 16 bits, which knows no sign."""
    described = {"rows": 40, "columns": 35, "samples_per_pixel": 1, "bits_stored": 16, "bits_allocated": 16}
    return bytes(
        jpeg_ls.encode_pixel_data(
            values.tobytes(), error, photometric_interpretation="MONOCHROME2", **described
        )
    )


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_signed_values_that_an_error_of_the_compression_lifts_out_of_the_range_do_not_wrap(tmp_path, bits):
    """Coded as of 16 bits, the brightest value would become the darkest, and the reverse."""
    half = 2 ** (bits - 1)
    signed = (image(bits).astype(np.int16) - half).astype(np.int16)
    wavelets = encode_array(signed, bits_stored=16, compression_ratios=[4], photometric_interpretation=2)
    for syntax, content in ((JPEG2000, bytes(wavelets)), (JPEGLSNearLossless, near_lossless(signed, 3))):
        described = {"BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 1}
        path = dicom(tmp_path / "image.dcm", signed, PixelData=content, syntax=syntax, **described)
        found = read_image(path).astype(int)
        np.testing.assert_allclose(found, signed, atol=2**bits // 16)
        assert -half <= found.min() <= found.max() < half
        values = pydicom.dcmread(path)
        values.BitsStored, values.HighBit = 16, 15
        assert (
            not -half <= values.pixel_array.min() <= values.pixel_array.max() < half
        )  # the errors were there


def test_signed_values_that_lost_their_sign_before_a_lossy_compression_get_it_back(tmp_path):
    signed = image(10).astype(np.int16) - 512
    content = near_lossless(signed & 1023, 1)
    path = dicom(
        tmp_path / "image.dcm", signed, PixelData=content, syntax=JPEGLSNearLossless, BitsStored=10, HighBit=9,
        PixelRepresentation=1,
    )  # fmt: skip
    away_from_the_ends = np.abs(signed + 0.5) < 510  # there the code itself runs from 511 to -512
    np.testing.assert_allclose(
        read_image(path)[away_from_the_ends].astype(int), signed[away_from_the_ends], atol=1
    )


def test_run_lengths_hold_bits_and_the_other_compressions_numbers(tmp_path):
    """A header may say that values lie in the upper bits; true of memory, and of RLE, which copies it."""
    values = image(12)
    described = {"BitsStored": 12, "HighBit": 15}
    run_lengths = dicom(tmp_path / "rle.dcm", values << 4, syntax=RLELossless, **described)
    np.testing.assert_array_equal(read_image(run_lengths), values)
    dataset = pydicom.dcmread(dicom(tmp_path / "image.dcm", values, BitsStored=12, HighBit=11))
    for syntax in (JPEGLSLossless, JPEG2000Lossless):
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.HighBit = 15
        dataset.save_as(tmp_path / "small.dcm")
        np.testing.assert_array_equal(read_image(tmp_path / "small.dcm"), values)
        dataset.decompress(generate_instance_uid=False)
        dataset.HighBit = 11


def jpeg_of_even_blocks(blocks: np.ndarray, step: int) -> bytes:
    """ITU T.81, process 4, 12 bits: blocks of 8 x 8 pixels of one grey value, rounded to multiples of step / 8."""
    stream, before = "", 0
    for value in np.rint((blocks.ravel() - 2048.0) * 8 / step).astype(int).tolist():
        difference, before = value - before, value
        size = abs(difference).bit_length()
        stream += f"{size:04b}"
        stream += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}" if size else ""
        stream += "0"  # no other frequencies
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    rows, columns = (8 * side for side in blocks.shape)
    steps = b"\xff\xdb\x00\x43\x00" + bytes([step]) * 64
    frame = (
        b"\xff\xc1\x00\x0b\x0c" + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + b"\x01\x01\x11\x00"
    )
    first = b"\xff\xc4\x00\x1f\x00" + bytes([0, 0, 0, 12, *[0] * 12]) + bytes(range(12))
    others = b"\xff\xc4\x00\x14\x10" + bytes([1, *[0] * 15]) + b"\x00"
    return (
        b"\xff\xd8"
        + steps
        + frame
        + first
        + others
        + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
        + coded
        + b"\xff\xd9"
    )


def test_white_of_a_12_bit_jpeg_of_fewer_bits_stays_white(tmp_path):
    """1023 of 10 bits comes back as 1028."""
    pytest.importorskip("libjpeg", reason="jaxcxr[lossless] is not installed")
    blocks = np.linspace(0, 1023, 20).reshape(4, 5).astype(np.uint16)
    values = np.kron(blocks, np.ones((8, 8), np.uint16))
    path = written(tmp_path / "image.dcm", values, 10, JPEGExtended12Bit, jpeg_of_even_blocks(blocks, 255))
    found = read_image(path)
    np.testing.assert_allclose(found.astype(int), values, atol=16)
    assert found.max() == 1023


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("syntax", "predictor"),
    [(JPEGLosslessSV1, 1), (JPEGLossless, 1), (JPEGLossless, 4), (JPEGLossless, 6), (JPEGLossless, 7)],
)
def test_lossless_jpeg_is_read_with_the_extra(tmp_path, syntax, predictor, bits):
    pytest.importorskip("libjpeg", reason="jaxcxr[lossless] is not installed")
    path = written(
        tmp_path / "image.dcm", image(bits), bits, syntax, jpeg_lossless(image(bits), bits, predictor)
    )
    np.testing.assert_array_equal(read_image(path), image(bits))


def test_jpeg_of_12_bits_is_read_with_the_extra(tmp_path):
    """An image of pydicom's own; mean and extremes are what libjpeg-turbo 3 decodes."""
    pytest.importorskip("libjpeg", reason="jaxcxr[lossless] is not installed")
    file = get_testdata_file("JPGExtended.dcm", download=False)
    assert isinstance(file, str)
    dataset = pydicom.dcmread(file)
    dataset.Modality = "DX"
    dataset.save_as(tmp_path / "image.dcm")
    pixels = read_image(tmp_path / "image.dcm")
    assert pixels.shape == (1024, 256)
    assert (pixels.min(), pixels.max()) == (0, 264)
    assert pixels.mean() == pytest.approx(14.37, abs=0.02)


@pytest.mark.parametrize(
    ("syntax", "bits"), [(JPEGLosslessSV1, 8), (JPEGLossless, 16), (JPEGExtended12Bit, 12)]
)
def test_a_compression_that_needs_the_extra_says_so(tmp_path, syntax, bits, monkeypatch):
    """As where neither pylibjpeg-libjpeg nor python-gdcm is installed; Pillow takes JPEG of 8 bits alone."""
    decoder = get_decoder(syntax)
    monkeypatch.setattr(
        decoder, "_available", {name: how for name, how in decoder._available.items() if name == "pillow"}
    )
    path = written(tmp_path / "image.dcm", image(bits), bits, syntax, b"never decoded")
    with pytest.raises(
        InputError, match=r"image\.dcm: DICOM of \d+ bits compressed as 'JPEG .*jaxcxr\[lossless\]' adds it$"
    ):
        read_image(path)
