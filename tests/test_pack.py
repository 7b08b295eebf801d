"""Packing image files: that pixels are Pillow's own, and what is left on the disk whatever happens."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from fastvae.cli import main
from fastvae.data import pack as module
from fastvae.data.pack import Packed, pack, read_image

LANCZOS = Image.Resampling.LANCZOS


def picture(seed: int, height: int = 40, width: int = 60, mode: str = "RGB") -> Image.Image:
    """A smooth picture of random colours, so that filters of one kind agree."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Thirty colour images in three classes, of several sizes and formats."""
    source = tmp_path / "images"
    for number in range(30):
        path = source / f"class {number % 3}" / f"{number:02}.{('png', 'jpg', 'webp')[number % 4 % 3]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 30 + number, 50).save(path)
    return source


def files_of(source: Path) -> list[Path]:
    return sorted(path for path in source.rglob("*") if path.is_file())


def left_beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir() if path.name.startswith((out.stem, f".{out.stem}"))}


def assert_fails(capsys: pytest.CaptureFixture[str], arguments: list[object], *parts: str) -> None:
    assert main(["pack", *map(str, arguments)]) in (1, 2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("fastvae: error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


@pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (64, 64), (1, 1), (7, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crop_and_stretch_are_pillows_own(tmp_path: Path, height: int, width: int, mode: str) -> None:
    path = tmp_path / "a.png"
    image = picture(1, 41, 67, mode)
    image.save(path)
    # The largest centred box of the result's shape, by comparing shapes rather than scales.
    w, h = (67, 67 * height / width) if 41 * width > 67 * height else (41 * width / height, 41)
    box = ((67 - w) / 2, (41 - h) / 2, (67 + w) / 2, (41 + h) / 2)
    for fit, shown in (("crop", box), ("stretch", None)):
        read = read_image(str(path), (height, width), mode == "L", fit)  # type: ignore[arg-type]
        assert read.dtype == np.uint8
        assert read.shape == ((height, width) if mode == "L" else (3, height, width))
        expected = np.asarray(image.resize((width, height), LANCZOS, box=shown, reducing_gap=3.0)).astype(int)
        channels_last = read if mode == "L" else read.transpose(1, 2, 0)
        # Boxes may differ by a rounding.
        assert np.abs(channels_last - expected).max() <= 1
        # The filter alone, without the averages of whole pixels that save it work before. A single pixel is the average
        # of all, to which that adds up.
        if fit == "crop" and height > 1:
            expected = np.asarray(ImageOps.fit(image, (width, height), LANCZOS)).astype(int)
            assert np.abs(channels_last - expected).mean() < 2


@pytest.mark.parametrize(("height", "width", "rows", "columns"), [(32, 32, 16, 32), (16, 64, 16, 32), (64, 16, 8, 16)])
def test_pad_keeps_the_shape_between_black_borders(
    tmp_path: Path, height: int, width: int, rows: int, columns: int
) -> None:
    Image.new("RGB", (100, 50), (200, 100, 50)).save(tmp_path / "a.png")
    read = read_image(str(tmp_path / "a.png"), (height, width), False, "pad")
    expected = np.zeros((3, height, width), np.uint8)
    top, left = (height - rows) // 2, (width - columns) // 2
    expected[:, top : top + rows, left : left + columns] = np.array([200, 100, 50])[:, None, None]
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    image, exif = picture(2, 96, 160), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    with Image.open(tmp_path / f"a.{suffix}") as stored:
        turned = ImageOps.exif_transpose(stored)
    assert turned.size == ((160, 96) if orientation < 5 else (96, 160))
    expected = np.asarray(turned.resize((20, 30), LANCZOS)).transpose(2, 0, 1).astype(int)
    read = read_image(str(tmp_path / f"a.{suffix}"), (30, 20), False, "stretch")
    assert np.abs(read - expected).max() <= 4


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
def test_large_jpegs_decode_at_less_than_their_size_and_look_the_same(tmp_path: Path, fit: str) -> None:
    picture(3, 800, 1200).save(tmp_path / "a.jpg", quality=95)
    picture(3, 800, 1200).save(tmp_path / "a.png")
    jpeg, png = (read_image(str(tmp_path / f"a.{s}"), (32, 32), False, fit).astype(int) for s in ("jpg", "png"))  # type: ignore[arg-type]
    assert np.abs(jpeg - png).mean() < 1.5


def test_every_mode_of_pixels_becomes_the_right_levels(tmp_path: Path) -> None:
    levels = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
    grey = Image.fromarray(levels)
    clear = Image.merge("RGBA", [grey, grey, grey, Image.new("L", (8, 8), 0)])
    cases = {
        "l.png": (grey, levels),
        "i16.png": (Image.fromarray(levels.astype(np.uint16) * 257), levels),
        "rgb.png": (grey.convert("RGB"), levels),
        "p.png": (grey.convert("P"), levels),
        "la.png": (grey.convert("LA"), levels),
        "opaque.png": (grey.convert("RGBA"), levels),
        "clear.png": (clear, np.full((8, 8), 255)),
        "bit.png": (grey.point(lambda v: 255 * (v > 127)).convert("1"), 255 * (levels > 127)),
        "cmyk.tif": (grey.convert("RGB").convert("CMYK"), levels),
    }
    for name, (image, expected) in cases.items():
        image.save(tmp_path / name)
        for as_grey in (True, False):
            read = read_image(str(tmp_path / name), (8, 8), as_grey, "crop").astype(int)
            assert np.abs(read - expected).max() <= 1, name


def test_a_file_is_none_of_the_formats_that_run_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(1).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    for name in ("avif", "jp2", "tga"):
        if Image.registered_extensions()[f".{name}"] in Image.SAVE:
            picture(1).save(tmp_path / f"{name}.{name}")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *arguments: pytest.fail("Ghostscript was started"))
    packed = pack(tmp_path, tmp_path / "out.npy", size=4, skip_bad=True)
    assert packed.skipped == [f"{tmp_path / 'a.png'} (not an image)"]
    assert packed.shape == (3, 4, 4)


def test_folder_becomes_an_array_with_labels_and_names_of_classes(folder: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    packed = pack(folder, tmp_path / "out.npy", size=(12, 16), progress=lambda *counts: calls.append(counts))
    assert packed == Packed(30, [], ("class 0", "class 1", "class 2"), (3, 12, 16))
    array = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert (array.dtype, array.shape) == (np.uint8, (30, 3, 12, 16))
    for row, path in zip(array, files_of(folder), strict=True):
        np.testing.assert_array_equal(row, read_image(str(path), (12, 16), False, "crop"))
    labels = np.load(tmp_path / "out.labels.npy")
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], 10))
    assert (tmp_path / "out.classes.txt").read_text() == "class 0\nclass 1\nclass 2\n"
    assert left_beside(tmp_path / "out.npy") == {"out.npy", "out.labels.npy", "out.classes.txt"}
    assert calls[-1] == (30, 30, 0)


def test_images_without_two_classes_have_no_labels(folder: Path, tmp_path: Path) -> None:
    assert pack(folder / "class 0", tmp_path / "flat.npy", size=4).classes == ()
    (folder / "class 0" / "00.png").rename(folder / "above.png")
    assert pack(folder, tmp_path / "mixed.npy", size=4).classes == ()
    assert not list(tmp_path.glob("*.labels.npy"))


@pytest.mark.parametrize("above", [False, True])
def test_parts_of_a_data_set_are_not_mixed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], above: bool
) -> None:
    for part in ("Train", "val"):
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / part).symlink_to(folder)
    if above:
        picture(1).save(tmp_path / "parts" / "above.png")
    out = tmp_path / "out.npy"
    message = f"{tmp_path / 'parts'} holds parts of a data set, Train, val, which one array would mix: pack each"
    assert_fails(capsys, [tmp_path / "parts", out, "--size", 4], message, "--test-data")
    assert not out.exists()
    assert pack(tmp_path / "parts" / "Train", out, size=4).classes == ("class 0", "class 1", "class 2")
    (tmp_path / "parts" / "plane").symlink_to(folder)
    if not above:
        assert pack(tmp_path / "parts", tmp_path / "classes.npy", size=4).classes == ("Train", "plane", "val")


def test_hidden_files_and_other_files_are_left_out_and_loops_of_links_end(folder: Path, tmp_path: Path) -> None:
    (folder / "class 0" / "._00.png").write_bytes(b"of macOS")
    (folder / "class 0" / "notes.md").write_text("of the photographer")
    (folder / "class 0" / "loop").symlink_to(folder)
    (folder / "class 3").symlink_to(folder / "class 1")
    packed = pack(folder, tmp_path / "out.npy", size=4)
    assert (packed.images, len(packed.classes)) == (40, 4)


def test_list_file_gives_the_order_and_paths_relative_to_itself(folder: Path, tmp_path: Path) -> None:
    paths = [folder / "class 1" / "01.jpg", folder / "class 0" / "00.png"]
    (folder / "list.txt").write_text(f"class 1/01.jpg\n\n{paths[1]}\n")
    assert pack(folder / "list.txt", tmp_path / "out.npy", size=8) == Packed(2, [], (), (3, 8, 8))
    for row, path in zip(np.load(tmp_path / "out.npy"), paths, strict=True):
        np.testing.assert_array_equal(row, read_image(str(path), (8, 8), False, "crop"))


@pytest.mark.parametrize(
    ("channels", "modes", "shape"),
    [("auto", "LL", (8, 8)), ("auto", "LR", (3, 8, 8)), ("grey", "RR", (8, 8)), ("rgb", "LL", (3, 8, 8))],
)
def test_channels_are_grey_where_all_images_are(
    tmp_path: Path, channels: str, modes: str, shape: tuple[int, ...]
) -> None:
    for number, mode in enumerate(modes):
        picture(number, mode={"L": "L", "R": "RGB"}[mode]).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"which has no colour")
    packed = pack(tmp_path, tmp_path / "out.npy", size=8, channels=channels, skip_bad=True)  # type: ignore[arg-type]
    assert packed.shape == np.load(tmp_path / "out.npy").shape[1:] == shape


SLOWLY = """
import sys, time
from fastvae.data import pack as module

decode = module.read_image
def slowly(*arguments):
    time.sleep(0.02)
    return decode(*arguments)
module.read_image, module._SECONDS_BETWEEN_COMMITS, module._BLOCK = slowly, 0, 2
module.pack(sys.argv[1], sys.argv[2], size=16, workers=1)
"""


def test_killed_pack_goes_on_where_it_was(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, journal = tmp_path / "out.npy", tmp_path / "out.npy.part.journal"
    process = subprocess.Popen([sys.executable, "-c", SLOWLY, str(folder), str(out)])
    try:
        done = np.zeros(30, bool)
        while done.sum() < 8:
            assert process.poll() is None, "it was over before it was killed"
            time.sleep(0.005)
            if journal.is_file() and journal.stat().st_size == 8 * (4 + 30):
                done = np.fromfile(journal, np.uint64)[4:] != 0
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    done = np.fromfile(journal, np.uint64)[4:] != 0
    assert 8 <= done.sum() < 30
    assert not out.exists()

    decoded: list[Path] = []

    def record(path: str, *rest: object) -> object:
        decoded.append(Path(path))
        return read_image(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_image", record)
    pack(folder, out, size=16)
    assert sorted(decoded) == [path for path, was in zip(files_of(folder), done, strict=True) if not was]
    pack(folder, tmp_path / "whole.npy", size=16)
    assert out.read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert left_beside(out) == {"out.npy", "out.labels.npy", "out.classes.txt"}


@pytest.mark.parametrize("change", ["size", "fit", "list", "file"])
def test_unfinished_pack_of_other_files_or_options_is_not_gone_on_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def interrupt(done: int, *counts: int) -> None:
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(folder, tmp_path / "out.npy", size=16, workers=1, progress=interrupt)
    assert left_beside(tmp_path / "out.npy") == {"out.npy.part", "out.npy.part.journal"}
    options: dict[str, object] = {"size": 16}
    if change == "list":
        picture(99).save(folder / "class 0" / "99.png")
    elif change == "file":
        picture(99).save(files_of(folder)[0])
    else:
        options[change] = {"size": 17, "fit": "pad"}[change]
    decoded: list[str] = []
    monkeypatch.setattr(module, "read_image", lambda path, *rest: decoded.append(path) or read_image(path, *rest))
    pack(folder, tmp_path / "out.npy", **options)  # type: ignore[arg-type]
    count = len(files_of(folder))
    # A file that has changed is read again, and no other.
    assert len(decoded) == (count - 16 + 1 if change == "file" else count)
    pack(folder, tmp_path / "whole.npy", **options)  # type: ignore[arg-type]
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def damage(folder: Path) -> list[str]:
    """Makes files bad in four ways; returns their names."""
    bad = [folder / "class 0" / name for name in ("a.png", "b.jpg", "c.png", "d.png")]
    bad[0].write_bytes(b"no image at all")
    picture(7, 200, 200).save(bad[1])
    bad[1].write_bytes(bad[1].read_bytes()[:900])
    bad[2].write_bytes(b"")
    bad[3].symlink_to(folder / "gone.png")
    return [str(path) for path in bad]


def test_bad_files_are_named_all_at_once_and_what_was_read_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, out = damage(folder), tmp_path / "out.npy"
    assert_fails(capsys, [folder, out, "--size", 8], "4 of 34 files cannot be read", *bad, "--skip-bad")
    assert not out.exists()
    decoded: list[str] = []
    monkeypatch.setattr(module, "read_image", lambda path, *rest: decoded.append(path) or read_image(path, *rest))
    assert main(["pack", str(folder), str(out), "--size", "8", "--skip-bad"]) == 0
    assert sorted(decoded) == bad
    left_out, packed = capsys.readouterr().out.splitlines()
    assert left_out.startswith("left out 4 files: ")
    assert packed == f"30 images [3, 8, 8] of 3 classes in {out}"
    for path in bad:
        assert path in left_out
        Path(path).unlink()
    pack(folder, tmp_path / "whole.npy", size=8)
    for kind in (".npy", ".labels.npy"):
        assert out.with_suffix(kind).read_bytes() == (tmp_path / f"whole{kind}").read_bytes()
    assert left_beside(out) == {"out.npy", "out.labels.npy", "out.classes.txt"}


def test_first_ten_bad_files_are_named_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(13):
        (tmp_path / f"{number:02}.png").touch()
    assert_fails(capsys, [tmp_path, tmp_path / "o.npy", "--size", 8, "--skip-bad"], "09.png (not an image) and 3 more")
    assert "10.png" not in capsys.readouterr().err
    assert not (tmp_path / "o.npy").exists()


@pytest.mark.parametrize("factor", [1, 3])  # where Pillow warns, and where it refuses
def test_decompression_bomb_is_a_bad_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, recwarn: pytest.WarningsRecorder
) -> None:
    picture(1, 100, 100).save(folder / "class 2" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999 // factor)
    packed = pack(folder, tmp_path / "out.npy", size=4, skip_bad=True)
    assert packed.images == 30
    assert packed.skipped == [f"{folder / 'class 2' / 'bomb.png'} (more pixels than Pillow considers safe)"]
    assert not recwarn.list


def test_what_users_get_wrong_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "there.npy").write_bytes(b"kept")
    out = tmp_path / "out.npy"
    for arguments, part in (
        ([tmp_path / "empty", out, "--size", 8], f"found no images in {tmp_path / 'empty'}"),
        ([tmp_path / "empty.txt", out, "--size", 8], "lists no files"),
        ([tmp_path / "gone", out, "--size", 8], f"{tmp_path / 'gone'}: No such file or directory"),
        ([tmp_path / "there.npy", out, "--size", 8], "neither a folder of images nor a .txt file"),
        ([folder, out, "--size", 0], "at least 1"),
        ([folder, out, "--size", "8x0"], "at least 1"),
        ([folder, out, "--size", "8x8x8"], "'8x8x8' is not a size such as 64 or 64x48"),
        ([folder, out], "--size"),
        ([folder, tmp_path / "out.png", "--size", 8], "does not end in .npy"),
        ([folder, tmp_path / "there.npy", "--size", 8], "--overwrite"),
    ):
        assert_fails(capsys, arguments, part)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "empty", "empty.txt", "there.npy"}
    assert (tmp_path / "there.npy").read_bytes() == b"kept"


def test_overwriting_leaves_no_labels_of_the_array_before(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    pack(folder, out, size=8)
    with pytest.raises(FileExistsError, match=r"out\.npy exists already"):
        pack(folder / "class 0", out, size=8)
    pack(folder / "class 0", out, size=8, overwrite=True)
    assert len(np.load(out)) == 10
    assert left_beside(out) == {"out.npy"}


@pytest.mark.parametrize("call", ["posix_fallocate", "fsync"])
def test_full_disk_is_one_line_and_nothing_is_at_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "out.npy"
    monkeypatch.setattr(os, call, full)
    assert_fails(capsys, [folder, out, "--size", 8], "out.npy.part: No space left on device")
    # What could not be begun takes no space; what could is kept.
    assert left_beside(out) == (set() if call == "posix_fallocate" else {"out.npy.part", "out.npy.part.journal"})
    monkeypatch.undo()
    assert main(["pack", str(folder), str(out), "--size", "8"]) == 0


def test_second_process_is_refused(folder: Path, tmp_path: Path) -> None:
    def again(*counts: int) -> None:
        pack(folder, tmp_path / "out.npy", size=8)

    with pytest.raises(BlockingIOError, match="another process is writing it"):
        pack(folder, tmp_path / "out.npy", size=8, progress=again)


PEAK = """
import resource, sys
from fastvae.data.pack import pack

pack(sys.argv[1], sys.argv[2], size=384, workers=2)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_result(tmp_path: Path) -> None:
    picture(0, 64, 64).save(tmp_path / "a.png")
    peaks = []
    for count in (40, 400):
        (tmp_path / f"{count}.txt").write_text("a.png\n" * count)
        arguments = [str(tmp_path / f"{count}.txt"), str(tmp_path / f"{count}.npy")]
        process = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
        peaks.append(int(process.stdout))
    assert (tmp_path / "400.npy").stat().st_size > 170e6
    assert peaks[1] - peaks[0] < 40e6
