"""Images as tensors: the pixels that Pillow gives, whoever decodes."""

from io import BytesIO
import tarfile

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from PIL import Image
import pytest
import torch

from dcvit import datasets, decoding
from dcvit.datasets import pictures
from dcvit.decoding import decoded, is_plain, jpeg_size, size_of
from dcvit.errors import DataError
from dcvit.sources import from_folder, from_shards
from tests.helpers import image_folder, tiny


def picture(height=37, width=53, mode="RGB"):
    small = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def file_of(image, kind, **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


TURNED = Image.Exif()
TURNED[0x0112] = 6  # by a quarter
KINDS = {
    "JPEG 4:2:0": file_of(picture(), "JPEG", subsampling=2),
    "JPEG 4:2:2": file_of(picture(), "JPEG", subsampling=1),
    "JPEG 4:4:4": file_of(picture(), "JPEG", subsampling=0),
    "grey JPEG": file_of(picture(mode="L"), "JPEG"),
    "progressive JPEG": file_of(picture(), "JPEG", progressive=True),
    "JPEG of RGB": file_of(picture(), "JPEG", keep_rgb=True),
    "turned JPEG": file_of(picture(), "JPEG", exif=TURNED),
    "CMYK JPEG": file_of(picture(mode="CMYK"), "JPEG"),
    "PNG": file_of(picture(), "PNG"),
    "PNG with alpha": file_of(picture(mode="RGBA"), "PNG"),
    "PNG with a palette": file_of(picture(mode="P"), "PNG"),
    "BMP": file_of(picture(), "BMP"),
    "WEBP": file_of(picture(), "WEBP", lossless=True),
}
BY_LIBJPEG = [kind for kind in KINDS if "JPEG" in kind and "CMYK" not in kind]


@pytest.fixture
def only(tmp_path, monkeypatch):
    """A set of which the first training image has a given content; nothing of it is held in memory."""
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)

    def make(content):
        source = from_folder(image_folder(tmp_path / "images"))
        path = source.root / source.train[0].path
        path.write_bytes(content)
        return pictures(source, "train", tiny()), path

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_that_pillow_gives(kind, only):
    images, _ = only(KINDS[kind])
    found = decoded(images, 0)
    assert (found.dtype, found.stride(0)) == (torch.uint8, 1)
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(images.open(0)))
    assert found.shape == (3, 37, 53)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_known_without_decoding(kind, only, monkeypatch):
    images, _ = only(KINDS[kind])
    monkeypatch.setattr(Image.Image, "load", None)
    assert size_of(images, 0) == (37, 53)


@pytest.mark.parametrize("kind", KINDS)
def test_plain_jpegs_do_not_pass_through_pillow(kind, only, monkeypatch):
    images, _ = only(KINDS[kind])
    monkeypatch.setattr(Image, "open", None)
    if kind in BY_LIBJPEG:
        decoded(images, 0)
    else:
        with pytest.raises(DataError):
            decoded(images, 0)


def test_without_torchvisions_decoder_pillow_decodes_all(only, monkeypatch):
    images, _ = only(KINDS["JPEG 4:2:0"])
    expected = decoded(images, 0)
    monkeypatch.setattr(decoding, "DECODE", None)
    assert torch.equal(decoded(images, 0), expected)


@pytest.mark.parametrize("kind", ["JPEG 4:2:0", "progressive JPEG", "PNG"])
@pytest.mark.parametrize("left", [0, 1, 10, 200, -30])
def test_what_is_cut_short_is_named(kind, left, only):
    images, path = only(KINDS[kind][:left])
    with pytest.raises(DataError, match=f"{path} can't be read any more"):
        decoded(images, 0)


def test_what_is_gone_is_named(only):
    images, path = only(KINDS["PNG"])
    path.unlink()
    for look in (decoded, size_of):
        with pytest.raises(DataError, match=f"{path} can't be read any more"):
            look(images, 0)


def test_what_is_too_large_is_left_to_pillow_which_refuses(only, monkeypatch):
    """A JPEG of some bytes can stand for 65,535 x 65,535 pixels, 12 GB."""
    images, path = only(KINDS["JPEG 4:2:0"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 53)
    assert is_plain(KINDS["JPEG 4:2:0"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 37 * 53 // 2 - 1)
    assert not is_plain(KINDS["JPEG 4:2:0"])
    with pytest.raises(DataError, match=rf"{path}.*decompression bomb"):
        decoded(images, 0)


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda rest: b"\xff\xd8\xff" + rest))
def test_any_bytes_have_a_size_or_none(content):
    size = jpeg_size(content)
    assert size is None or all(1 <= side < 1 << 16 for side in size)


@given(st.sampled_from(BY_LIBJPEG), st.data())
def test_a_header_cut_anywhere_tells_the_right_size_or_none(kind, data):
    content = KINDS[kind]
    assert jpeg_size(content[: data.draw(st.integers(0, len(content)))]) in (None, (37, 53))


def test_comments_and_padding_before_the_size_are_passed_over():
    content = KINDS["JPEG 4:2:0"]
    comment = b"\xff\xfe\x00\x0b\xff\xc0 no one"
    assert jpeg_size(content[:2] + comment + b"\xff\xff" + content[2:]) == (37, 53)


def test_images_in_shards_are_decoded_from_their_bytes_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(datasets, "HELD_BYTES", 0)
    kinds = ["JPEG 4:2:0", "PNG", "grey JPEG", "CMYK JPEG"]
    for split in ("train", "val"):
        with tarfile.open(tmp_path / f"{split}.tar", "w") as tar:
            for number, kind in enumerate(kinds):
                label = str(number % 3).encode()
                for name, content in ((".png" if kind == "PNG" else ".jpg", KINDS[kind]), (".cls", label)):
                    member = tarfile.TarInfo(f"{number}{name}")
                    member.size = len(content)
                    tar.addfile(member, BytesIO(content))
    train = pictures(from_shards(tmp_path), "train", tiny())
    for index, kind in enumerate(kinds):
        assert train.encoded(index) == KINDS[kind]
        assert np.array_equal(decoded(train, index).permute(1, 2, 0), np.asarray(train.open(index)))
