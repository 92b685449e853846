import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from jaxcxr.data.decoded import odd
from jaxcxr.data.images import decode_image, preprocess
from jaxcxr.errors import InputError
from tests.data.odd_files import (
    PADDED,
    RIGHT,
    TWELVE,
    agreement,
    dicom,
    picture,
    png_files,
    table,
    tiff_files,
)

PICTURES = {f"{kind}-{name}": write for kind, files in (("tiff", tiff_files()), ("png", png_files())) for name, write in files.items()}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_header_written_otherwise_shows_the_same_image(tmp_path, name):
    image = decode_image(RIGHT[name](tmp_path / name))
    assert agreement(image.pixels) > (0.999 if "8" not in name else 0.99)
    assert len(np.unique(image.pixels)) > 180
    expected = {
        "slope_0": "rescale slope 0 ignored",
        "slope_minus": "inverted by a negative rescale slope",
        "slope_minus_window": "inverted by a negative rescale slope",
        "window_half": "invalid window ignored",
        "function_unknown": "unknown VOI function taken as linear",
        "table_without_data": "VOI look-up table that cannot be read ignored",
        "orientation_text": "turned or mirrored upright by its patient orientation",
    }
    colour = name.startswith(("palette", "rgb", "ybr"))
    assert image.flags == (
        ("colour image made grey",) if colour else (expected[name],) if name in expected else ()
    )


@pytest.mark.parametrize("name", PADDED)
def test_padding_of_either_sign_and_any_representation_is_dark(tmp_path, name):
    image = decode_image(PADDED[name](tmp_path / name)).pixels
    assert (image[:, :5] == image.min()).all()
    assert np.corrcoef(image[:, 5:].ravel(), picture()[:, 5:].ravel())[0, 1] > 0.97
    assert len(np.unique(preprocess(image, 64))) > 150


@pytest.mark.parametrize("name", PICTURES)
def test_white_is_bright_in_every_picture_and_no_bit_is_lost(tmp_path, name):
    image = decode_image(PICTURES[name](tmp_path / "image")).pixels
    assert agreement(image) > 0.999
    levels = 190 if "8" in name and "int8" not in name else 150 if "int8" in name or "jpeg" in name else 400
    assert len(np.unique(image)) >= levels


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_tiff_is_put_upright_as_pillow_turns_the_same_array(tmp_path, turn):
    values = picture(8).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", metadata=None, extratags=[(274, 3, 1, turn, True)])  # fmt: skip
    theirs = Image.fromarray(values)
    theirs.getexif()[274] = turn
    np.testing.assert_array_equal(
        decode_image(tmp_path / "a.tif").pixels, np.asarray(ImageOps.exif_transpose(theirs))
    )


def test_images_of_few_grey_values_are_named(tmp_path):
    def remarks(values, changes=None):
        image = decode_image(dicom(tmp_path / "a.dcm", np.asarray(values, np.uint16), changes))
        return (*image.flags, *odd(image.pixels, preprocess(image.pixels, 32)))

    assert remarks(TWELVE) == ()
    assert remarks(np.full((40, 36), 7)) == ("constant: all pixels have one grey value",)
    assert remarks(TWELVE // 256) == ("only 16 grey values",)
    assert remarks(np.full((40, 36), 7), {"PixelPaddingValue": ("US", 7)}) == (
        "all padding: no pixel differs from the padding value",
        "constant: all pixels have one grey value",
    )
    squeezed = TWELVE // 64
    squeezed[:8, :8] = 65535  # a border that nothing declares
    found = remarks(squeezed, {"BitsStored": ("US", 16), "HighBit": ("US", 15)})
    assert len(found) == 1
    assert found[0].startswith("after preparation only ")


@pytest.mark.parametrize(
    ("changes", "how", "words"),
    [
        ({"BitsStored": ("LO", "")}, {}, "BitsStored is missing, empty or no value"),
        ({"PhotometricInterpretation": ("CS", "")}, {}, "PhotometricInterpretation is missing"),
        ({"Rows": ("LO", "many")}, {}, "the image is empty"),
        ({"ModalityLUTSequence": ("SQ", [table(60000, np.arange(4))])}, {}, "a table that none"),
        ({"PixelData": None}, {}, "without pixel data"),
        ({"RescaleSlope": ("LO", "NaN")}, {}, "RescaleSlope is not a number"),
        ({"RescaleIntercept": ("LO", "none")}, {}, "RescaleIntercept is not a number"),
        ({"WindowCenter": ("LO", "100\\wide")}, {}, "WindowCenter is not a number"),
    ],
)  # fmt: skip
def test_what_stands_for_no_image_is_refused_with_the_element(tmp_path, changes, how, words):
    with pytest.raises(InputError, match=words):
        decode_image(dicom(tmp_path / "a.dcm", TWELVE, changes, **how))
