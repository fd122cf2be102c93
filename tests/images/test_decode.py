from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from kpjax.errors import DataError
from kpjax.images.decode import decode, fitted_size, shrink, size_of

RGB = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}])
def test_jpeg_pixels_equal_opencv(options):
    picture = Image.fromarray(RGB).resize((80, 61), Image.Resampling.BICUBIC)
    data = encoded(picture, "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decode(data, "x"), expected)


def test_png_modes():
    picture = Image.fromarray(RGB)
    np.testing.assert_array_equal(decode(encoded(picture, "PNG"), "x"), RGB)
    with_alpha = picture.copy()
    with_alpha.putalpha(Image.fromarray(RGB[..., 0]))
    np.testing.assert_array_equal(decode(encoded(with_alpha, "PNG"), "x"), RGB)
    grey = np.repeat(RGB[..., :1], 3, axis=2)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(RGB[..., 0]), "PNG"), "x"), grey)
    palette = picture.quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG"), "x"), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(RGB[..., 0]).convert("1")
    assert set(np.unique(decode(encoded(bits, "PNG"), "x"))) == {0, 255}
    wide = (RGB[..., 0].astype(np.uint16) << 8) + 7
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(wide), "PNG"), "x"), grey)


def test_cmyk_is_converted():
    data = encoded(Image.fromarray(RGB).resize((80, 60)).convert("CMYK"), "JPEG", quality=98)
    image = decode(data, "x")
    assert image.shape == (60, 80, 3)
    near = np.asarray(Image.fromarray(RGB).resize((80, 60)), np.int32)
    assert np.abs(image - near).mean() < 12


def test_float_images_are_refused():
    data = encoded(Image.fromarray(RGB[..., 0].astype(np.float32)), "TIFF")
    with pytest.raises(DataError, match=r"a\.tif.*floating"):
        decode(data, "a.tif")


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0XX*\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01"]
)
@pytest.mark.filterwarnings("error")
def test_damaged_exif_turns_nothing(exif):
    data = encoded(Image.fromarray(RGB), "JPEG", exif=exif, quality=95)
    np.testing.assert_array_equal(
        decode(data, "x", exif=True), decode(encoded(Image.fromarray(RGB), "JPEG", quality=95), "x")
    )
    assert size_of(data, "x") == (*RGB.shape[:2], 1)


def test_exif_is_applied_only_when_asked():
    picture = Image.fromarray(RGB)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    data = encoded(picture, "PNG", exif=exif)
    np.testing.assert_array_equal(decode(data, "x"), RGB)
    np.testing.assert_array_equal(decode(data, "x", exif=True), np.rot90(RGB, -1))
    assert size_of(data, "x") == (9, 13, 6)


def test_damaged_files_name_the_file_in_one_line():
    data = encoded(Image.fromarray(RGB).resize((200, 150)), "JPEG")
    for cut in (0, 3, 100, len(data) // 2, len(data) - 2):
        with pytest.raises(DataError, match=r"broken\.jpg") as bad:
            decode(data[:cut], "broken.jpg")
        assert "\n" not in str(bad.value)
    with pytest.raises(DataError, match="truncated"):
        decode(data[: len(data) // 2], "broken.jpg")
    with pytest.raises(DataError, match="empty"):
        decode(b"", "broken.jpg")
    with pytest.raises(DataError, match="not an image"):
        decode(b"<html>404</html>" * 20, "broken.jpg")
    with pytest.raises(DataError, match="broken"):
        size_of(b"nothing", "broken.jpg")


def test_fitted_size():
    assert fitted_size(480, 640, 640) == (480, 640)
    assert fitted_size(100, 50, 640) == (100, 50)
    assert fitted_size(1000, 500, 640) == (640, 320)
    assert fitted_size(3, 9000, 640) == (1, 640)
    high, wide = fitted_size(np.array([480, 1280]), np.array([640, 960]), 640)
    assert high.tolist() == [480, 640] and wide.tolist() == [640, 480]


def test_shrink_averages_and_leaves_small_images_alone():
    assert shrink(RGB, 13) is RGB
    board = np.indices((200, 100)).sum(0) % 2 * 200
    small = shrink(np.repeat(board[..., None], 3, 2).astype(np.uint8), 100)
    assert small.shape == (100, 50, 3) and np.all(small == 100)
