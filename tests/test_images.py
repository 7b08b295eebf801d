"""Folders of images: their order, classes and parts, and images that do not fit."""

import numpy as np
import pytest
from data_files import COLOUR, GREY, NOISE, encode, refused, same, write

from fastvae.data import read
from fastvae.data.pack import read_image


@pytest.mark.parametrize("images", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm"])
def test_a_folder_of_images_is_read_in_the_order_of_names(tmp_path, form, images):
    for index in reversed(range(6)):
        write(tmp_path / f"{index}.{form.upper() if index == 1 else form}", encode(images[index], form))
    for stray in (".DS_Store", "Thumbs.db", "README.txt", "._0.png", ".hidden/0.png"):
        write(tmp_path / stray, b"0")
    steps = []
    source = read(tmp_path, progress=lambda done, total: steps.append((done, total)))
    assert same(source.data, images if images.ndim == 3 else images.transpose(0, 3, 1, 2))
    assert source.data.is_contiguous()
    assert source[1:] == (None, None, None, None)
    assert steps[-1] == (6, 6)


@pytest.mark.parametrize(
    ("form", "array", "options"),
    [
        ("JPEG", GREY[0], {}),
        ("JPEG", COLOUR[0], {}),
        ("GIF", GREY[0], {}),
        ("WEBP", COLOUR[0], {"lossless": True}),
        ("PNG", np.dstack([COLOUR[0], GREY[0]]), {}),  # with transparency
        ("PNG", np.dstack([GREY[0], GREY[1]]), {}),
        ("PNG", GREY[0] > 99, {}),
    ],
)
def test_images_of_any_kind_are_what_pillow_says(tmp_path, form, array, options):
    from PIL import Image

    path = tmp_path / ("a." + form.lower())
    write(path, encode(array, form, **options))
    image = Image.open(path)
    expected = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
    assert same(read(tmp_path).data, expected[None] if expected.ndim == 2 else expected.transpose(2, 0, 1)[None])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_orientation_says(tmp_path, orientation):
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    write(tmp_path / "a.png", encode(GREY[0], exif=exif))
    with Image.open(tmp_path / "a.png") as stored:
        turned = ImageOps.exif_transpose(stored)
    assert turned.size == ((4, 5) if orientation < 5 else (5, 4))
    assert same(read(tmp_path).data[0], np.asarray(turned))
    packed = read_image(str(tmp_path / "a.png"), turned.size[::-1], True, "crop")
    assert np.array_equal(packed, np.asarray(turned))


def test_an_image_whose_metadata_are_damaged_is_taken_as_it_is(tmp_path):
    write(tmp_path / "a.png", encode(GREY[0], exif=b"Exif\0\0garbage!"))
    assert same(read(tmp_path).data, GREY[:1])
    assert np.array_equal(read_image(str(tmp_path / "a.png"), (5, 4), True, "crop"), GREY[0])


def test_a_palette_is_looked_up(tmp_path, recwarn):
    from PIL import Image

    image = Image.fromarray(COLOUR[0]).quantize(8)
    write(tmp_path / "a.png", encode(image, transparency=bytes([0, 128])))
    assert same(read(tmp_path).data[0], np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert not recwarn.list


def test_hundreds_of_images_keep_their_order(tmp_path):
    images = NOISE.integers(0, 256, (600, 3, 2), dtype=np.uint8)
    for index, image in enumerate(images):
        write(tmp_path / f"{index:03}.png", encode(image))
    steps = []
    assert same(read(tmp_path, progress=lambda done, total: steps.append(done)).data, images)
    assert steps == [257, 513, 600]


@pytest.mark.parametrize(
    ("train", "test"), [("", None), ("train", "test"), ("train", "val"), ("Train", "validation"), ("train", None)]
)
def test_subfolders_are_classes(tmp_path, train, test):
    for index, label in enumerate(["ox", "ant", "ox", "bee", "ant"]):
        write(tmp_path / train / label / f"{index}.png", encode(GREY[index]))
    if test is not None:
        write(tmp_path / test / "bee" / "deeper" / "0.png", encode(GREY[5]))
    source = read(tmp_path)
    assert source.classes == ("ant", "bee", "ox")
    assert source.labels.tolist() == [0, 0, 1, 2, 2]
    assert same(source.data, GREY[[1, 4, 3, 0, 2]])
    if test is None:
        assert source.test is None
    else:
        assert same(source.test, GREY[5:])
        assert source.test_labels.tolist() == [1]


def test_parts_need_no_classes(tmp_path):
    for index in range(6):
        write(tmp_path / ("train", "test", "val")[index % 3] / f"{index}.png", encode(GREY[index]))
    source = read(tmp_path)
    assert same(source.data, GREY[[0, 3]])
    assert same(source.test, GREY[[1, 4]])
    assert source.labels is source.test_labels is None


def test_a_class_may_be_called_like_a_part(tmp_path):
    for index, label in enumerate(["plane", "train", "test"]):
        write(tmp_path / label / "0.png", encode(GREY[index]))
    source = read(tmp_path)
    assert source.classes == ("plane", "test", "train")
    assert source.test is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("1.png", encode(GREY[1, :4]), r"1.png: is 4x4 grey, but .*0.png 4x5 grey; `fastvae pack` makes"),
        ("1.png", encode(COLOUR[1]), r"1.png: is 4x5 RGB, but .*0.png 4x5 grey; `fastvae pack` makes"),
        ("1.png", encode(GREY[1])[:-30], r"1.png: cannot be decoded as an image: "),
        ("1.jpg", b"", r"1.jpg: cannot be decoded as an image: it has no known format"),
        ("1.jpg", b"%!PS-Adobe-3.0 EPSF-3.0", r"1.jpg: cannot be decoded as an image: it has no known format"),
        ("1.png", encode(GREY[1].astype(np.uint16)), r"1.png: has grey levels of more than 8 bits \(mode I;16"),
        ("1.tif", encode(GREY[1].astype(np.float32), "TIFF"), r"1.tif: has grey levels of more than 8 bits \(mode F"),
        ("class/1.png", encode(GREY[1]), r": has images like 0.png next to folders of images"),
    ],
)
def test_an_image_that_does_not_fit_is_named(tmp_path, name, content, message):
    write(tmp_path / "0.png", encode(GREY[0]))
    write(tmp_path / name, content)
    write(tmp_path / "2.png", b"is bad too, but not the first")
    refused(tmp_path, message)


@pytest.mark.parametrize("stray", [None, "README.txt", ".hidden.png"])
def test_a_folder_without_data_is_refused(tmp_path, stray):
    if stray:
        write(tmp_path / stray, b"0")
    refused(tmp_path, r": holds no images \(.png, .*\), no Parquet files and no IDX files")
