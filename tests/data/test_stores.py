"""What all stores share."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from eqssl.data.dataset import MemoryImages
from eqssl.data.stores import bits_of, channel_statistics, decode


@pytest.mark.parametrize(("side", "skip"), [(64, 1), (65, 2), (200, 4)])
def test_statistics_are_of_all_images_and_of_large_ones_in_part(side, skip):
    images = torch.randint(0, 256, (70, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    expected = images[..., ::skip, ::skip].double() / 255
    mean, std = channel_statistics(MemoryImages(images))
    assert mean == pytest.approx(expected.mean((0, 2, 3)).tolist())
    assert std == pytest.approx(expected.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize("side", [8, 95])
@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 3), ("LA", 1), ("P", 3)])
def test_channels_come_first_and_in_their_order(side, mode, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image, file = Image.fromarray(pixels).convert(mode), io.BytesIO()
    image.save(file, "PNG")
    expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(side, side, channels)
    assert np.array_equal(decode(file.getvalue(), None).pixels, expected.transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_range(form):
    levels, file = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64), io.BytesIO()
    Image.fromarray(levels).save(file, form)
    assert np.array_equal(decode(file.getvalue(), None).pixels, (levels >> 8)[None])


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(kind):
    file = io.BytesIO()
    Image.fromarray(np.ones((8, 8), kind)).save(file, "TIFF")
    with pytest.raises(ValueError, match=r"mode [IF], whose range is not known"):
        decode(file.getvalue(), None)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(kind, orientation):
    """As a camera that is held in each of eight ways stores one scene, here with a bright upper left quarter."""
    scene = np.zeros((16, 16), np.uint8)
    scene[:8, :8], scene[:8, 8:] = 250, 120
    stored = [scene, scene[:, ::-1], scene[::-1, ::-1], scene[::-1], scene.T, np.rot90(scene), np.rot90(scene.T, 2),
              np.rot90(scene, -1)][orientation - 1]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decode(encoded(Image.fromarray(stored).convert("RGB"), kind, exif=exif), None).pixels
    assert np.abs(pixels[0].astype(int) - scene).mean() < 8


def test_broken_exif_and_xmp_are_no_error():
    image = Image.fromarray(np.full((8, 8, 3), 90, np.uint8))
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="7'
    for kind, options in (
        ("JPEG", {"exif": b"Exif\0\0II*\0\xff\xff\xff\xffrubbish"}), ("JPEG", {"exif": b"Exif\0\0"}),
        ("PNG", {"exif": b"rubbish"}), ("WEBP", {"xmp": xmp.encode()}), ("JPEG", {"xmp": b"\xff\xfe<x:"}),
    ):  # fmt: skip
        assert np.abs(decode(encoded(image, kind, **options), None).pixels.astype(int) - 90).max() <= 2


def test_transparent_pixels_are_white_and_others_as_they_are():
    colours = np.random.default_rng(0).integers(0, 200, (8, 8, 3), dtype=np.uint8)
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:4], alpha[4] = 0, 128
    rgb, mask = Image.fromarray(colours), Image.fromarray(alpha)
    for mode in ("RGB", "L"):
        opaque = rgb.convert(mode)
        image = opaque.copy()
        image.putalpha(mask)
        pixels, *_, note = decode(encoded(image), None)
        expected = np.asarray(opaque).reshape(8, 8, -1).transpose(2, 0, 1)
        assert "over white" in note and (pixels[:, :4] == 255).all() and np.array_equal(pixels[:, 5:], expected[:, 5:])
        half = (expected[:, 4].astype(int) + 255) / 2
        assert np.abs(pixels[:, 4] - half).max() <= 1


@pytest.mark.parametrize("mode, hidden", [("RGB", (10, 20, 30)), ("L", 10), ("P", 1), ("I;16", 10)])
def test_a_transparent_colour_is_white(mode, hidden):
    if mode == "I;16":
        image = Image.fromarray(np.repeat(np.array([60000, 10], np.uint16), 32).reshape(8, 8))
    else:
        image = Image.new("L" if mode == "L" else "RGB", (8, 8), 10 if mode == "L" else (10, 20, 30))
        image.paste(200 if mode == "L" else (200, 100, 0), (0, 0, 8, 4))
    if mode == "P":
        image = image.quantize(2)
        hidden = image.getpixel((0, 7))
    pixels, *_, note = decode(encoded(image, transparency=hidden), None)
    assert "over white" in note and (pixels[:, 4:] == 255).all() and pixels[0, 0, 0] == (234 if mode == "I;16" else 200)


def test_an_opaque_alpha_channel_is_not_reported():
    assert decode(encoded(Image.new("RGBA", (8, 8), (1, 2, 3, 255))), None).note == ""


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read_and_reported(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    several = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    pixels, *_, note = decode(several, None)
    assert "several frames" in note and pixels[0].min() > 150 and pixels[1:].max() < 50
    assert decode(encoded(frames[0], kind), None).note == ""


def test_bits_of_greys_are_those_of_cameras():
    assert [bits_of(n) for n in (1, 255, 256, 1023, 3000, 4096, 16383, 16384, 65535)] == [
        8, 8, 10, 10, 12, 14, 14, 16, 16
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "P", "1"])
def test_any_mode_of_8_bits_is_read_in_its_colours(mode):
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 8, 4))
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    pixels = decode(encoded(image.convert(mode), kind), None).pixels
    assert len(pixels) == (1 if mode == "1" else 3) and pixels[:, :3].max() < 20 and pixels[:, 5:].min() > 235
