"""mmjax.data.files and mmjax.data.tar: paths and patterns, reads from many threads, and tar archives against `tarfile`."""

import io
import os
import pickle
import tarfile
import threading

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmjax.core.errors import UserError
from mmjax.data import files, tar


def test_patterns(tmp_path):
    for name in ("a-00000.tar", "a-00001.tar", "b-00000.tar", "odd[1]{2}.tar"):
        (tmp_path / name).write_text("")
    got = lambda pattern: [os.path.basename(p) for p in files.expand(str(tmp_path / pattern))]
    assert got("a-{00000..00002}.tar") == ["a-00000.tar", "a-00001.tar", "a-00002.tar"]  # the third is missed later, by name
    assert got("{b,a}-*.tar") == ["b-00000.tar", "a-00000.tar", "a-00001.tar"]
    assert got("[ab]-00000.tar") == ["a-00000.tar", "b-00000.tar"]
    assert got("odd[1]{2}.tar") == ["odd[1]{2}.tar"]
    assert files.expand("x{8..11}{a,b}") == ["x8a", "x8b", "x9a", "x9b", "x10a", "x10b", "x11a", "x11b"]
    with pytest.raises(UserError, match=r"no file matches '.*/c-\*\.tar'"):
        got("{a,c}-*.tar")
    with pytest.raises(UserError, match="neither a range"):
        files.expand("x{1-3}.tar")
    with pytest.raises(UserError, match="more than"):
        files.expand("x{0..99999999999}")


def test_a_file_system_layer_lists_and_reads_alike(tmp_path):
    memory = fsspec.filesystem("memory")
    for root in (str(tmp_path), "memory://layer"):
        for name, data in (("a.bin", b"0123456789"), ("b.bin", b"")):
            if files.is_remote(root):
                memory.pipe_file(f"/layer/{name}", data)
            else:
                (tmp_path / name).write_bytes(data)
        assert [files.basename(p) for p in files.expand(files.join(root, "*.bin"))] == ["a.bin", "b.bin"]
        assert [s and s.size for s in files.stats([files.join(root, n) for n in ("a.bin", "none", "b.bin")])] == [10, None, 0]
        read = files.Reader()
        assert read(files.join(root, "a.bin"), 3, 4) == b"3456" and read(files.join(root, "a.bin"), 8, 4) == b"89"
        assert files.read(files.join(root, "a.bin")) == b"0123456789" and files.listdir(root) == [("a.bin", False), ("b.bin", False)]
        assert files.is_dir(root) and not files.is_dir(files.join(root, "a.bin"))
        with pytest.raises(UserError, match="does not exist"):
            files.stat(files.join(root, "none"))
    memory.rm("/layer", recursive=True)


def test_a_store_whose_package_is_missing_or_that_nobody_knows(monkeypatch):
    with pytest.raises(UserError, match="'nosuch://x' cannot be opened.*nosuch"):
        files.stats(["nosuch://x/y"])

    def missing(path):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match="pip install s3fs"):
        files.stats(["s3://bucket/a.tar"])


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/b.jpg", "/r/a/b.jpg"),
        ("a/../b.jpg", "/r/b.jpg"),
        ("./b.jpg", "/r/b.jpg"),
        ("../b.jpg", None),
        ("a/../../b.jpg", None),
        ("/etc/passwd", None),
        ("..\\b.jpg", None),
        ("C:\\b.jpg", None),
        ("gs://x/b.jpg", None),
        ("a\0b", None),
        ("..", None),
    ],
)
def test_names_out_of_data_stay_inside(name, place):
    assert files.inside("/r", name) == place


def test_many_threads_read_more_files_than_are_kept_open(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_OPEN_FILES", 2)
    for i in range(8):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 1000)
    before, read, wrong = len(os.listdir("/proc/self/fd")), files.Reader(), []

    def work(k):
        for j in range(300):
            i = (k * 7 + j * 3) % 8
            if read(str(tmp_path / str(i)), j, 5) != bytes([i]) * 5:
                wrong.append((i, j))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong and len(os.listdir("/proc/self/fd")) <= before + 2
    assert pickle.loads(pickle.dumps(read))(str(tmp_path / "3"), 0, 1) == b"\3"


def test_a_file_stays_open_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_OPEN_FILES", 1)
    for i in range(4):
        (tmp_path / str(i)).write_bytes(bytes([i]) * 10)
    read, real, first = files.Reader(), os.pread, []

    def slow(fd, size, offset):
        if not first:
            first.append(fd)
            assert [read(str(tmp_path / str(i)), 0, 1) for i in (1, 2, 3)] == [b"\1", b"\2", b"\3"]  # other threads, meanwhile
        return real(fd, size, offset)

    monkeypatch.setattr(os, "pread", slow)
    assert read(str(tmp_path / "0"), 0, 3) == b"\0\0\0"


# --- tar ---


def archive(members, format=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as t:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
            else:
                info.size = len(data)
            t.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return out.getvalue()


def scanned(data):
    def read(offset, n):
        assert offset < len(data)  # object stores answer that with an error
        return data[offset : offset + n]

    return list(tar.scan(read, len(data), "t.tar"))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=300).filter(
    lambda n: n.strip("/") and not n.endswith("/")
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.one_of(st.binary(max_size=1500), st.none(), st.just("target" * 30))), max_size=6),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_are_those_tarfile_finds(members, format):
    data = archive(members, format)
    with tarfile.open(fileobj=io.BytesIO(data)) as t:
        expected = [(m.name, m.offset_data, m.size) for m in t.getmembers() if m.isreg()]
    assert [(m.name.rstrip("/"), m.offset, m.size) for m in scanned(data)] == expected


def test_sizes_beyond_8_gib_in_both_encodings():
    size = 9 << 30
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        info = tarfile.TarInfo("big.bin")
        info.size = size
        head, small = info.tobuf(format), archive([("x.txt", b"hi")])
        end = len(head) + size

        def read(offset, n, head=head, small=small, end=end):
            return head[offset : offset + n] if offset < len(head) else small[offset - end : offset - end + n]

        found = list(tar.scan(read, end + len(small), "t.tar"))
        assert [(m.name, m.offset, m.size) for m in found] == [("big.bin", len(head), size), ("x.txt", end + 512, 2)]


def test_every_way_of_being_cut_off_is_noticed():
    data = archive([("a.jpg", b"x" * 700), ("a.txt", b"y"), ("p" * 150 + ".txt", b"z" * 10)])
    end = len(data.rstrip(b"\0"))
    end += -end % 512
    assert len(scanned(data[: end + 512])) == 3  # one block of zeros is an end
    for length in [*range(0, end, 64), end]:
        with pytest.raises(UserError, match=r"'t.tar' is cut off after \d+ bytes \(half-written\?\)"):
            scanned(data[:length])
    for rest in (bytes(2 << 20), bytes(1024) + data):  # space reserved and not reached; two archives in one
        with pytest.raises(UserError, match=rf"'t.tar' ends at byte {end} of"):
            scanned(data[:end] + rest)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda d: d[:1600] + b"\xff" + d[1601:], "damaged at byte 1536: no member's header"),
        (lambda d: b"\x1f\x8b" + d[2:], "is compressed; random access needs a plain tar"),
        (lambda d: b"<html>" + d[6:], "is no tar archive"),
        (lambda d: d[:124] + b"zz" + d[126:], "is no tar archive"),
    ],
)
def test_damage_is_named(harm, message):
    data = archive([("a.jpg", b"x" * 700), ("a.txt", b"y")])
    with pytest.raises(UserError, match=message):
        scanned(harm(data))


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 4095), st.binary(min_size=1, max_size=40))
def test_garbage_never_ends_in_anything_but_one_line(at, junk):
    data = bytearray(archive([("p" * 150, b"x" * 700), ("a.txt", b"y")]))
    data[at : at + len(junk)] = junk
    try:
        scanned(bytes(data))
    except UserError as e:
        assert "\n" not in str(e)
