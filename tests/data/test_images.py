import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from jaxcxr.data.images import prepare_images, preprocess, read_image
from jaxcxr.errors import InputError

RAMP = np.add.outer(np.arange(40), np.arange(30) * 2).astype(np.uint8)


def dicom(path, pixels=RAMP, **changes):
    """Write a DX image; a change to None removes the attribute."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "DX"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = pixels.tobytes()
    syntax = changes.pop("syntax", None)
    for name, value in changes.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax is not None:
        dataset.PixelData = encapsulate([dataset.PixelData])
        dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_grey_is_read_from_every_mode(tmp_path, mode, suffix):
    if suffix == ".jpg" and mode in ("RGBA", "LA", "P"):
        pytest.skip("JPEG has no such mode")
    path = tmp_path / f"film{suffix}"
    picture = Image.fromarray(RAMP)
    picture = picture.convert(mode) if mode != "P" else picture.quantize(256)
    picture.save(path)
    pixels = read_image(path)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels.astype(int), RAMP, atol=3 if suffix == ".jpg" or mode == "P" else 0)


def test_a_16_bit_png_of_10_bits_fills_the_range(tmp_path):
    values = np.linspace(100, 1023, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "film.png")
    pixels = read_image(tmp_path / "film.png")
    np.testing.assert_array_equal(pixels, values)
    prepared = preprocess(pixels, 64)
    assert np.histogram(prepared, bins=4, range=(0, 256))[0].min() > 0.2 * 64 * 64


def test_a_rotated_photograph_is_put_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(RAMP).save(tmp_path / "film.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "film.png"), RAMP[::-1, ::-1])


def test_dicom_pixels_are_read(tmp_path):
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "film.dcm")), RAMP)
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "no_suffix")), RAMP)
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "rle.dcm", syntax=RLELossless)), RAMP)
    np.testing.assert_array_equal(read_image(dicom(tmp_path / "bare.dcm", Modality=None)), RAMP)


def test_monochrome1_is_turned_so_that_bone_is_bright(tmp_path):
    turned = read_image(dicom(tmp_path / "film.dcm", PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(turned, RAMP.max() - RAMP)


def test_the_window_and_the_rescaling_of_a_dicom_count(tmp_path):
    values = np.arange(0, 4000, 10, dtype=np.uint16).reshape(20, 20)
    windowed = read_image(dicom(tmp_path / "window.dcm", values, WindowCenter=1000, WindowWidth=500))
    assert (windowed[values < 740] == windowed.min()).all()
    assert (windowed[values > 1260] == windowed.max()).all()
    assert (np.diff(windowed[(values > 760) & (values < 1240)]) > 0).all()
    falling = read_image(dicom(tmp_path / "slope.dcm", values, RescaleSlope=-1, RescaleIntercept=4000))
    np.testing.assert_array_equal(falling, 4000.0 - values)
    both = read_image(
        dicom(tmp_path / "both.dcm", values, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=1000, WindowWidth=500)
    )
    assert (both[values > 700] == both.max()).all()


def test_a_colour_dicom_is_made_grey(tmp_path):
    colour = np.repeat(RAMP[..., None], 3, axis=2)
    path = dicom(tmp_path / "rgb.dcm", colour, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    np.testing.assert_array_equal(read_image(path), RAMP)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"PixelData": None}, "without pixel data"),
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"Modality": "CT"}, "modality 'CT'"),
        ({"Rows": 0}, "empty"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "'PALETTE COLOR'"),
        ({"PhotometricInterpretation": None}, "cannot be decoded"),
        ({"BitsStored": None}, "cannot be decoded"),
        ({"PixelData": b"\0" * 100}, "cannot be decoded"),
    ],
)
def test_a_dicom_that_holds_no_film_is_refused(tmp_path, changes, words):
    path = dicom(tmp_path / "film.dcm", **changes)
    with pytest.raises(InputError, match=words) as refusal:
        read_image(path)
    assert str(path) in str(refusal.value)


def test_a_compression_nobody_can_read_is_named(tmp_path):
    if get_decoder(JPEGLSLossless).is_available:
        pytest.skip("a JPEG-LS decoder is installed")
    path = dicom(tmp_path / "film.dcm", syntax=JPEGLSLossless)
    with pytest.raises(InputError, match="'JPEG-LS Lossless Image Compression', which needs"):
        read_image(path)


@pytest.mark.filterwarnings("ignore:End of file reached:UserWarning")
@pytest.mark.parametrize("name", ["film.png", "film.jpg", "film.tif", "film.dcm", "rle.dcm"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.2, 0.5, 0.8, 0.95])
def test_a_truncated_file_is_refused(tmp_path, name, fraction):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    if path.suffix == ".dcm":
        dicom(path, noise, syntax=RLELossless if name == "rle.dcm" else None)
    else:
        Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * fraction)])
    with pytest.raises(InputError) as refusal:
        read_image(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["film.png", "film.dcm", "film", "film.csv"])
def test_a_file_that_is_no_image_is_refused(tmp_path, name):
    with pytest.raises(InputError, match="cannot be opened"):
        read_image(tmp_path / name)
    (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(2000))
    with pytest.raises(InputError, match=r"cannot be read as|not a DICOM file"):
        read_image(tmp_path / name)


def test_a_folder_and_several_frames_are_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be opened"):
        read_image(tmp_path)
    frames = [Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy().reshape(RAMP.shape))]
    for name in ("film.tif", "film.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(InputError, match="2 frames"):
            read_image(tmp_path / name)


def test_values_that_are_not_finite_are_refused(tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(tmp_path / "film.tif")
    with pytest.raises(InputError, match="not finite"):
        read_image(tmp_path / "film.tif")


@settings(max_examples=60, deadline=None)
@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.float64]),
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        elements={"min_value": 0, "max_value": 250},
    ),
    size=st.integers(1, 33),
)
def test_preprocessing_gives_bytes_of_the_asked_size_over_the_whole_range(image, size):
    result = preprocess(image, size)
    assert (result.dtype, result.shape) == (np.uint8, (size, size))
    assert (result.min(), result.max()) in [(0, 255), (0, 0)]


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint16, (16, 16), elements=st.integers(0, 4095)))
def test_preprocessing_keeps_the_order_of_grey_values(image):
    result = preprocess(image, 16).ravel()[np.argsort(image.ravel(), kind="stable")]
    assert (np.diff(result.astype(int)) >= 0).all()


def test_the_range_of_the_input_does_not_matter():
    image = np.random.default_rng(0).integers(0, 256, (32, 32))
    np.testing.assert_array_equal(
        preprocess(image.astype(np.uint8), 32), preprocess((image * 256 + 4096).astype(np.uint32), 32)
    )


def test_a_constant_image_is_black():
    with np.errstate(all="raise"):
        assert not preprocess(np.full((10, 20), 77, dtype=np.uint16), 16).any()


def test_a_smaller_film_averages_what_it_leaves_out():
    stripes = np.zeros((128, 128), dtype=np.uint8)
    stripes[:, 0:64:4] = 200  # one column of four is bright, then three of four
    stripes[:, 64:] = 200
    stripes[:, 64::4] = 0
    small = preprocess(stripes, 16)
    assert small[:, :7].max() < small[:, 9:].min()


def test_equalisation_comes_last_and_makes_levels_equally_frequent():
    # Averaging over 8 x 8 pixels makes noise nearly normal: only an equalisation after the resize spreads it evenly.
    noise = np.random.default_rng(0).exponential(1000, (512, 512)).astype(np.uint16)
    counts = np.histogram(preprocess(noise, 64), bins=8, range=(0, 256))[0]
    np.testing.assert_allclose(counts, 64 * 64 / 8, rtol=0.2)


def test_many_files_keep_their_order_and_their_errors(tmp_path):
    paths = []
    for index in range(40):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.roll(RAMP, index, axis=0)).save(path)
        paths.append(path)
    paths[7].unlink()
    paths[21].write_bytes(b"broken")
    alone = list(prepare_images(paths, 16))
    shared = list(prepare_images(paths, 16, processes=2))
    assert len(alone) == len(shared) == 40
    for index, (one, other) in enumerate(zip(alone, shared, strict=True)):
        if index in (7, 21):
            assert isinstance(other, InputError)
            assert str(one) == str(other)
            assert f"{index}.png" in str(other)
        else:
            np.testing.assert_array_equal(one, preprocess(read_image(paths[index]), 16))
            np.testing.assert_array_equal(one, other)


def test_decoding_does_not_run_ahead_of_its_reader(tmp_path):
    class Counted(list):
        asked = 0

        def __getitem__(self, key):
            Counted.asked += 1
            return super().__getitem__(key)

    films = prepare_images(Counted([tmp_path / "absent.png"] * 4000), 16, processes=2)
    assert isinstance(next(films), InputError)
    films.close()
    assert Counted.asked < 20  # of 250 batches
