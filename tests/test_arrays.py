"""Arrays in files: mapped where they can be, told by their names where there are several."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import COLOUR, GREY, LABELS, NOISE, refused, same, write_safetensors, write_torch

from fastvae.data import Source, read


def mapped(path):
    """How this process has a file mapped: ``r--s`` is read-only and shared."""
    return [line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "i4", "i8", "f2", "f4", "f8"])
def test_an_array_is_mapped_in_its_own_type(tmp_path, recwarn, dtype):
    array = NOISE.integers(0, 2, (7, 3)).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    source = read(tmp_path / "a.npy")
    assert isinstance(source, Source)
    assert same(source.data, array)
    assert source[1:] == (None, None, None, None)
    assert mapped(tmp_path / "a.npy") == ["r--s"]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("given", "kept"), [("i1", "i2"), ("u2", "i4"), ("u4", "i8"), (">i2", "i2"), (">u2", "i4"), (">f8", "f8")]
)
def test_numbers_that_torch_has_not_are_converted(tmp_path, given, kept):
    array = np.array([[np.iinfo(given).max, 1] if given[-2] in "iu" else [1e300, -1]], given)
    np.save(tmp_path / "a.npy", array)
    assert same(read(tmp_path / "a.npy").data, array.astype(kept))


def test_an_array_in_fortran_order_is_read_row_by_row(tmp_path):
    array = np.asfortranarray(COLOUR.astype(np.float32))
    np.save(tmp_path / "a.npy", array)
    data = read(tmp_path / "a.npy", layout="chw").data
    assert same(data, array)
    assert data.is_contiguous()


def test_a_large_array_opens_at_once(tmp_path):
    path = tmp_path / "a.npy"
    with open(path, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 32, 32)})
        file.truncate(file.tell() + (1 << 30))
    before = resident()
    data = read(path).data
    assert data.shape == (1 << 20, 32, 32)
    assert int(data[-1].sum()) == 0
    assert resident() - before < 32 << 20


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), complex),
        np.zeros((2, 2), "M8[s]"),
        np.zeros((2, 2), "U3"),
        np.zeros((2, 2), [("a", "f4")]),
        np.zeros((2, 2), "u8"),
    ],
    ids=lambda array: array.dtype.kind,
)
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_other_types_are_refused(tmp_path, array, suffix):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", a=array)
    refused(tmp_path / f"a.{suffix}", r"holds numbers of type .*, expected bool, integers")


@pytest.mark.parametrize("layout", ["auto", "chw", "hwc"])
@pytest.mark.parametrize(
    ("shape", "automatic"),
    [
        ((2, 5, 4, 3), True),
        ((2, 5, 4, 1), True),
        ((2, 5, 4, 4), True),
        ((2, 3, 5, 4), False),
        ((2, 3, 5, 3), False),
        ((2, 5, 4, 2), False),
        ((2, 5, 3), False),
    ],
)
def test_the_layout_of_images_is_told(tmp_path, layout, shape, automatic):
    array = NOISE.integers(0, 256, shape, dtype=np.uint8)
    np.save(tmp_path / "a.npy", array)
    data = read(tmp_path / "a.npy", layout=layout).data
    permute = len(shape) == 4 and (layout == "hwc" or (layout == "auto" and automatic))
    assert same(data, array.transpose(0, 3, 1, 2) if permute else array)
    assert mapped(tmp_path / "a.npy") == ["r--s"]


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout must be one of auto, chw, hwc, not 'nchw'"):
        read(tmp_path, layout="nchw")


def write_npz(path, arrays):
    np.savez(path, **arrays)


def write_compressed(path, arrays):
    np.savez_compressed(path, **arrays)


WRITERS = [
    pytest.param(write_npz, "a.npz", id="npz"),
    pytest.param(write_compressed, "a.npz", id="compressed"),
    pytest.param(write_torch, "a.pt", id="pt"),
    pytest.param(write_safetensors, "a.safetensors", id="safetensors"),
]


@pytest.mark.parametrize(("write", "name"), WRITERS)
@pytest.mark.parametrize(
    "names",
    [
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "test_images", "test_labels"),
        ("X_train", "Y_train", "X_val", "Y_val"),
        ("data", "labels", "test", "test_labels"),
        ("train", "labels", None, None),
        ("features", "target", None, None),
        ("arr_0", None, None, None),
    ],
    ids=lambda names: names[0],
)
def test_arrays_are_told_by_their_names(tmp_path, write, name, names):
    arrays = dict(zip(names, (COLOUR[:4], LABELS[:4], COLOUR[4:], LABELS[4:]), strict=True))
    write(tmp_path / name, {key: array for key, array in arrays.items() if key is not None})
    source = read(tmp_path / name)
    assert same(source.data, COLOUR[:4].transpose(0, 3, 1, 2))
    for given, key, array in (
        (source.labels, names[1], LABELS[:4]),
        (source.test, names[2], COLOUR[4:].transpose(0, 3, 1, 2)),
        (source.test_labels, names[3], LABELS[4:]),
    ):
        assert given is None if key is None else same(given, array)
    if write in (write_torch, write_safetensors):
        assert len(mapped(tmp_path / name)) == 1


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_a_test_part_is_preferred_to_a_validation_part(tmp_path, write, name):
    """As in MedMNIST's files, whose labels have a dimension to spare."""
    arrays = {
        f"{part}_{kind}": (array[rows] if kind == "images" else array[rows, None])
        for part, rows in (("train", slice(0, 3)), ("val", slice(3, 4)), ("test", slice(4, 6)))
        for kind, array in (("images", GREY), ("labels", LABELS))
    }
    write(tmp_path / name, arrays)
    source = read(tmp_path / name)
    assert same(source.test, GREY[4:])
    assert source.labels.tolist() == [0, 1, 2]
    assert source.test_labels.tolist() == [1, 2]


@pytest.mark.parametrize("labels", ["kind", "kind_train"])
@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_labels_are_named_for_both_parts(tmp_path, write, name, labels):
    arrays = {"x_train": GREY[:4], "kind_train": LABELS[:4], "x_test": GREY[4:], "kind_test": LABELS[4:]}
    write(tmp_path / name, arrays | {"other_train": LABELS[:4]})
    source = read(tmp_path / name, labels=labels)
    assert same(source.data, GREY[:4])
    assert source.labels.tolist() == LABELS[:4].tolist()
    assert source.test_labels.tolist() == LABELS[4:].tolist()
    # Of two in one part, it is the one that is called just so.
    write(tmp_path / name, {"x": GREY, "kind": LABELS, "Kind": LABELS[::-1].copy()})
    assert read(tmp_path / name, labels="kind").labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(("write", "name"), WRITERS)
def test_arrays_that_do_not_say_what_they_are_are_listed(tmp_path, write, name):
    write(tmp_path / name, {"first": GREY, "second": GREY})
    refused(tmp_path / name, ": holds the arrays first, second, which do not say which is the data")
    write(tmp_path / name, {"first": GREY, "second": LABELS})
    assert read(tmp_path / name, labels="second").labels.tolist() == LABELS.tolist()
    refused(tmp_path / name, ": has no array called third for labels, but first, second$", labels="third")
    write(tmp_path / name, {f"layer{index:02}": GREY for index in range(40)})
    refused(tmp_path / name, ": holds the arrays layer00, .*, layer09 and 30 more, which")


def test_arrays_beside_the_data_are_never_read(tmp_path):
    """As in dSprites, whose description is a pickled object."""
    np.savez(tmp_path / "a.npz", imgs=GREY, latents_values=np.zeros((6, 2)), metadata=np.array({}, object))
    assert same(read(tmp_path / "a.npz").data, GREY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint16, torch.bool])
def test_tensors_keep_their_type(tmp_path, dtype):
    from safetensors.torch import save_file

    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    torch.save(tensor, tmp_path / "a.pt")
    save_file({"a": tensor}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        data = read(tmp_path / name).data
        assert data.dtype == (torch.int32 if dtype is torch.uint16 else dtype)
        assert torch.equal(data, tensor.to(data.dtype))


def test_safetensors_are_mapped_read_only(tmp_path):
    write_safetensors(tmp_path / "a.safetensors", {"a": GREY})
    data = read(tmp_path / "a.safetensors").data
    assert mapped(tmp_path / "a.safetensors") == ["r--s"]
    assert same(data, GREY)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("[1]", ": cannot be read: "),
        ('{"a": 1}', ": cannot be read: "),
        ('{"a": {"dtype": "U8", "data_offsets": [0, 9]}}', ": a: cannot be read: 'shape'"),
        ('{"a": {"dtype": "U8", "shape": [2, 5], "data_offsets": [0, 9]}}', ": a: cannot be read: shape"),
        ('{"a": {"dtype": "F8_E4M3", "shape": [3, 3], "data_offsets": [0, 9]}}', ": a: holds numbers of type F8_E4M3"),
        (
            '{"a": {"dtype": "U8", "shape": [3, 3], "data_offsets": [0, 99]}}',
            ": truncated: 9 bytes of data, expected 99",
        ),
    ],
)
def test_a_damaged_header_of_safetensors_is_refused(tmp_path, header, message):
    raw = header.encode()
    (tmp_path / "a.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(9))
    refused(tmp_path / "a.safetensors", message)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {}], ids=repr)
def test_a_file_without_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    refused(tmp_path / "a.pt", ": holds a (list|dict), expected a tensor or a dict of tensors")
