"""Readers of files that others made: right numbers from sound ones, one clear line from damaged ones, and nothing run from hostile ones."""

import collections
import io
import json
import os
import pickle
import pickletools
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.convert import npz, pickles, safetensors, source, torch_file
from mmjax.core.errors import UserError
from tests.convert.cases import FOLDER
from tests.golden.weights import tensor

# --- safetensors --------------------------------------------------------------------------------------------------------


def write_raw(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_what_transformers_wrote():
    read = safetensors.read(FOLDER / "hf_clip" / "model.safetensors")
    assert len(read) == 78
    for name, x in read.items():
        np.testing.assert_array_equal(x.read(), tensor(name, x.shape), err_msg=name)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int8", "uint8", "bool"])
def test_every_type_comes_back(dtype, tmp_path):
    x = np.array([[0, 1, 0], [1, 1, 0]]).astype(jnp.dtype(dtype))
    safetensors.write(tmp_path / "a.safetensors", {"a": x, "odd": np.zeros(3, np.int8), "none": np.zeros((0, 4), x.dtype), "one": x[0, 1]})
    read = safetensors.read(tmp_path / "a.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in read.items()}["a"] == ((2, 3), jnp.dtype(dtype))
    np.testing.assert_array_equal(read["a"].read(), x)
    assert read["none"].read().shape == (0, 4) and read["one"].read().shape == ()


@pytest.mark.parametrize(
    "header, data, message",
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 7, "truncated: tensor 'a' ends at byte 8 of 7"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"\0" * 8, "tensor 'a' claims bytes 0 to 4, expected 8 from 0 on"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 9, "1 bytes belong to no tensor"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"\0" * 8, r"tensor 'a' has the shape \[-2\]"),
        ({"a": {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8, "header is damaged .KeyError"),
        ({"a": 3}, b"", "header is damaged"),
        (b"[" * 100_000, b"", "header is damaged .*Recursion|header is damaged"),
        (b"\xff{}", b"", "header is damaged"),
        (
            {k: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]} for k in "ab"},
            b"\0" * 8,
            "tensor 'b' claims bytes 0 to 8, expected 8 from 8 on",
        ),
    ],
)
def test_damaged_safetensors(header, data, message, tmp_path):
    with pytest.raises(UserError, match=message) as e:
        safetensors.read(write_raw(tmp_path / "x.safetensors", header, data))
    assert str(e.value).startswith(f"{tmp_path}/x.safetensors: ") and "\n" not in str(e.value)


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 20, struct.pack("<Q", 1 << 40)])
def test_no_safetensors(data, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="no safetensors file, or truncated"):
        safetensors.read(tmp_path / "x.safetensors")


def test_an_index_speaks_of_its_own_folder_and_keeps_its_promises(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    safetensors.write(tmp_path / "one.safetensors", {"a": np.zeros(2, np.float32)})
    for where, message in (
        ({"a": "../../etc/passwd"}, "names files outside its folder: ../../etc/passwd"),
        ({"a": "two.safetensors"}, "file 'two.safetensors', with 1 of the tensors, is missing"),
        ({"a": "one.safetensors", "b": "one.safetensors"}, "'one.safetensors' lacks tensors the index promises: b"),
    ):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(UserError, match=message):
            source.read(index)
    index.write_text("{}")
    with pytest.raises(UserError, match="no index of weights"):
        source.read(index)


# --- npz ----------------------------------------------------------------------------------------------------------------


def test_npz_in_both_forms(tmp_path):
    x = {"a/b": np.arange(6, dtype=np.float16).reshape(2, 3), "t": np.float32(2.5)}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **x)
        read = npz.read(tmp_path / "x.npz")
        assert {name: (t.shape, t.dtype) for name, t in read.items()} == {"a/b": ((2, 3), np.float16), "t": ((), np.float32)}
        np.testing.assert_array_equal(read["a/b"].read(), x["a/b"])


def test_npz_of_objects_is_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match="array 'a' holds pickled Python objects"):
        npz.read(tmp_path / "x.npz")


def test_damaged_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(1000.0))
    whole = path.read_bytes()
    path.write_bytes(whole[:4000])
    with pytest.raises(UserError, match="no .npz file, or truncated"):
        npz.read(path)
    path.write_bytes(whole[:3000] + b"\x77" + whole[3001:])
    with pytest.raises(UserError, match="array 'a' is damaged: Bad CRC-32"):
        npz.read(path)["a"].read()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:  # claims a terabyte
        z.writestr(
            "a.npy",
            np.lib.format.magic(1, 0) + b"v\0{'descr': '<f4', 'fortran_order': False, 'shape': (250000000000,), }".ljust(120) + b"\n",
        )
    with pytest.raises(UserError, match="array 'a'"):
        npz.read(path)


# --- PyTorch ------------------------------------------------------------------------------------------------------------


class Storage:
    def __init__(self, kind, key, size):
        self.kind, self.key, self.size = kind, key, size


class Call:
    """Pickles as a call of `name` with `arguments`, which never runs here: only bytes are made."""

    def __init__(self, name, *arguments):
        self.name, self.arguments = name, arguments


class _Pickler(pickle._Pickler):
    """Python's own pickler, writing globals by name, so that none need exist."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Storage):
            self.save(("storage", Name(f"torch.{obj.kind}"), obj.key, "cpu", obj.size), False)
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Name):
            module, _, name = obj.name.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Name(obj.name), False)
            self.save(obj.arguments, False)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


class Name:
    def __init__(self, name):
        self.name = name


def pickled(obj):
    out = io.BytesIO()
    _Pickler(out, 2).dump(obj)
    return out.getvalue()


def window(kind, key, size, offset, shape, strides):
    return Call("torch._utils._rebuild_tensor_v2", Storage(kind, key, size), offset, shape, strides, False, Call("collections.OrderedDict"))


def archive(path, obj, storages=(), compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr("archive/data.pkl", obj if isinstance(obj, bytes) else pickled(obj))
        for key, data in dict(storages).items():
            z.writestr(f"archive/data/{key}", data.tobytes())
    return path


@pytest.mark.parametrize("name", ["openai_state_dict.pt", "openclip_training.pt", "openai_jit.pt"])
def test_what_torch_wrote(name):
    read = torch_file.read(FOLDER / name)
    numbers = {"input_resolution": 16, "context_length": 8, "vocab_size": 40} if "jit" in name else {}
    for key, value in numbers.items():
        x = read.pop(key)
        assert (x.dtype, int(x.read())) == (np.int64, value)
    assert len(read) == 38
    for key, x in read.items():
        assert x.dtype == np.float16
        np.testing.assert_array_equal(x.read(), tensor(key, x.shape).astype(np.float16), err_msg=key)


def test_windows_on_storages(tmp_path):
    """Transposed, offset, repeated, shared and empty ones, of every type."""
    x = np.arange(12, dtype=np.float32)
    state = {
        "transposed": window("FloatStorage", "0", 12, 0, (4, 3), (1, 4)),
        "part": window("FloatStorage", "0", 12, 2, (2, 3), (6, 1)),
        "repeated": window("FloatStorage", "0", 12, 3, (2, 3), (0, 1)),
        "scalar": window("LongStorage", "1", 1, 0, (), ()),
        "none": window("FloatStorage", "0", 12, 0, (0, 3), (3, 1)),
        "half": Call("torch._utils._rebuild_parameter", window("BFloat16Storage", "2", 2, 0, (2,), (1,)), True, {}),
        "epoch": 3,
    }
    data = {"0": x, "1": np.array([7]), "2": np.array([1.5, -2], jnp.bfloat16)}
    read = torch_file.read(archive(tmp_path / "x.pt", state, data))
    assert set(read) == {"transposed", "part", "repeated", "scalar", "none", "half"}
    np.testing.assert_array_equal(read["transposed"].read(), x.reshape(3, 4).T)
    np.testing.assert_array_equal(read["part"].read(), [[2, 3, 4], [8, 9, 10]])
    np.testing.assert_array_equal(read["repeated"].read(), [[3, 4, 5]] * 2)
    np.testing.assert_array_equal(read["half"].read().astype(np.float32), [1.5, -2])
    assert int(read["scalar"].read()) == 7 and read["none"].read().shape == (0, 3)


def test_legacy_pickles_are_refused_with_a_way_out():
    with pytest.raises(
        UserError, match=r"before 1.6, which cannot be read without running it. .*torch.save\(torch.load\(.*weights_only=True"
    ):
        torch_file.read(FOLDER / "legacy.pt")


BOMB = "/hostile_pickle_ran"
HOSTILE = {
    "os.system": Call("os.system", f"touch {BOMB}"),
    "posix.system": Call("posix.system", f"touch {BOMB}"),
    "builtins.eval": Call("builtins.eval", f"open('{BOMB}', 'w')"),
    "builtins.getattr": Call("builtins.getattr", Call("builtins.__import__", "os"), "system"),
    "torch._utils._rebuild_tensor_v3": Call("torch._utils._rebuild_tensor_v3"),
    "numpy.load": {"a": [Call("numpy.load", "x")]},
    "runpy._run_code": collections.OrderedDict(a=Call("runpy._run_code", "import os")),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_do_not_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda *a: pytest.fail("a pickle ran"))
    inner = "builtins.__import__" if name == "builtins.getattr" else name
    with pytest.raises(UserError, match=f"its pickle calls '{inner}', .*nothing was run, the file is refused") as e:
        torch_file.read(archive(tmp_path / "x.pt", {"state_dict": HOSTILE[name]}))
    assert "\n" not in str(e.value) and not os.path.exists(BOMB)


def test_a_pickle_of_pythons_own_with_a_payload(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {BOMB}",)

    for protocol in (2, 4, 5):
        with pytest.raises(UserError, match="its pickle calls '(posix|nt).system'"):
            torch_file.read(archive(tmp_path / "x.pt", pickle.dumps({"a": Payload()}, protocol)))
    assert not os.path.exists(BOMB)


def test_whole_modules_and_other_instructions_are_refused(tmp_path):
    made = b"\x80\x02cmodels\nNet\n)\x81}b."  # NEWOBJ and BUILD, as torch.save(model) does
    with pytest.raises(UserError, match="makes an object of 'models.Net', not a tensor"):
        torch_file.read(archive(tmp_path / "x.pt", made))
    for code, name in ((b"(S'x'\nios\nsystem\n.", "INST"), (b"\x80\x02(cos\nsystem\nU\x01xo.", "OBJ"), (b"\x80\x02\x82\x01.", "EXT1")):
        assert name in [op.name for op, _, _ in pickletools.genops(code)]
        with pytest.raises(UserError, match=f"pickle instruction {name} is not one of a file of tensors"):
            torch_file.read(archive(tmp_path / "x.pt", code))


GREEDY = {
    "memo at the end of memory": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a string of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"abc.",
    "lists in lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "tuples as a key": b"\x80\x02}" + b")" + b"\x85" * 200_000 + b"K\x01s.",
    "a laugh in tuples as a storage": b"\x80\x02)" + b"".join(b"q%cq%ch%ch%c\x86" % (0, 0, 0, 0) for _ in range(60)) + b"Q.",
    "no end": b"\x80\x02]",
    "an empty stack": b"\x80\x02.",
    "nothing": b"",
    "no marks": b"\x80\x02u.",
}


@pytest.mark.parametrize("name", GREEDY)
def test_pickles_that_ask_for_all_memory_or_are_damaged(name, tmp_path):
    with pytest.raises(UserError, match="damaged pickle|expected a state dict|holds a list"):
        torch_file.read(archive(tmp_path / "x.pt", GREEDY[name]))


def test_modules_without_end(tmp_path):
    """One that is its own part, and 2^40 paths through forty that share their parts."""
    own = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb."
    with pytest.raises(UserError, match="modules without end"):
        torch_file.read(archive(tmp_path / "x.pt", own))
    chain = b"\x80\x02c__torch__\nM\n)\x81}b"
    for _ in range(40):
        chain += b"q\x00c__torch__\nM\n)\x81}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub"
    with pytest.raises(UserError, match="modules without end"):
        torch_file.read(archive(tmp_path / "x.pt", chain + b"."))


@pytest.mark.parametrize(
    "view, message",
    [
        (("FloatStorage", "0", 4, 0, (5,), (1,)), "tensor 'w' reaches element 4 of a storage of 4"),
        (("FloatStorage", "0", 10**15, 0, (10**15,), (1,)), "reaches element 999999999999999 of a storage of 4"),
        (("FloatStorage", "0", 4, 0, (10**15,), (0,)), "has 1000000000000000 elements of a storage of 4; refused"),
        (("FloatStorage", "0", 4, -1, (2,), (1,)), "strides .1,. and offset -1; the file is damaged"),
        (("FloatStorage", "0", 4, 0, (2, 2), (1,)), r"shape \(2, 2\), strides \(1,\)"),
        (("FloatStorage", "0", 4, 3, (2,), (-1,)), r"shape \(2,\), strides \(-1,\) and offset 3; the file is damaged"),
        (("FloatStorage", "9", 4, 0, (4,), (1,)), "tensor 'w' lies in entry 'data/9', which the archive lacks"),
        (("FloatStorage", "../../x", 4, 0, (4,), (1,)), "which the archive lacks"),
        (("ComplexFloatStorage", "0", 4, 0, (4,), (1,)), "tensor 'w' is of type ComplexFloatStorage, which is not read"),
    ],
)
def test_tensors_outside_their_storage(view, message, tmp_path):
    path = archive(tmp_path / "x.pt", {"w": window(*view)}, {"0": np.arange(4, dtype=np.float32)})
    with pytest.raises(UserError, match=message):
        torch_file.read(path)


def test_damaged_archives(tmp_path):
    path = archive(tmp_path / "x.pt", {"w": window("FloatStorage", "0", 100, 0, (100,), (1,))}, {"0": np.arange(100, dtype=np.float32)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="no PyTorch file .no zip archive., or truncated"):
        torch_file.read(path)
    at = whole.index(np.arange(100, dtype=np.float32).tobytes()) + 57
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    with pytest.raises(UserError, match=r"tensor 'w' \(entry 'archive/data/0'\) does not have its checksum; the file is corrupt"):
        torch_file.read(path)["w"].read()
    at = whole.index(b"FloatStorage")
    path.write_bytes(whole[:at] + b"f" + whole[at + 1 :])
    with pytest.raises(UserError, match="entry 'archive/data.pkl' does not have its checksum"):
        torch_file.read(path)


def test_zip_bombs_are_not_unpacked(tmp_path):
    big = archive(
        tmp_path / "x.pt",
        {"w": window("FloatStorage", "0", 10**6, 0, (10**6,), (1,))},
        {"0": np.zeros(10**6, np.float32)},
        zipfile.ZIP_DEFLATED,
    )
    assert big.stat().st_size < 10_000
    with pytest.raises(UserError, match="is compressed, which PyTorch's never are; refused"):
        torch_file.read(big)


def test_files_without_tensors(tmp_path):
    with pytest.raises(UserError, match="no tensors in it, but 'epoch', 'args'; expected a state dict"):
        torch_file.read(archive(tmp_path / "x.pt", {"epoch": 1, "args": {}}))
    with pytest.raises(UserError, match="holds a list, expected a state dict"):
        torch_file.read(archive(tmp_path / "x.pt", [1]))
    with zipfile.ZipFile(tmp_path / "y.pt", "w") as z:
        z.writestr("readme", "x")
    with pytest.raises(UserError, match="0 entries FOLDER/data.pkl in the archive, expected 1"):
        torch_file.read(tmp_path / "y.pt")
    (tmp_path / "z.weights").write_text("x")
    with pytest.raises(UserError, match="the ending says nothing of its format"):
        source.open_source(tmp_path / "z.weights")


def test_pickle_of_plain_values():
    """Held against pickle itself, for every protocol."""
    value = {"a": [1, -2, 2**40, 2.5, None, True, "ü", b"x"], "b": (), "c": (1, (2, 3), (4, 5, 6, 7)), 3: {"d": {}}}
    for protocol in (2, 3, 4, 5):
        own = {**value, "a": value["a"][:-1]} if protocol == 2 else value  # which writes bytes as a call
        assert pickles.load(pickle.dumps(own, protocol), "x") == own
