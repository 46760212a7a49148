"""Where the members of a tar archive lie, found without unpacking: names, offsets and sizes, read once from front to back.

Our own scanner rather than `tarfile`, which makes an object of two dozen fields a member and takes some ten times as long; it also
tells an archive that was cut off from one that ended, which `tarfile` does not where the cut falls between members. Understood:
POSIX ustar, pax headers (path, size), GNU long names and binary sizes. Names are data: nothing here opens or creates a file by them.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from mmjax.core.errors import UserError

_BLOCK = 512
_CHUNK = {False: 1 << 16, True: 8 << 20}  # bytes a read: local, remote (where a request is slow and bandwidth is not)
_LONGEST_HEADER = 1 << 20  # of a pax header or a long name
_LONGEST_END = 1 << 20  # of the zeros at the end
_ZERO = bytes(_BLOCK)
_FILES = (b"0", b"\0", b"7")
_NO_DATA = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: their size field is no length of data


class Member(NamedTuple):
    """A regular file in an archive: `size` bytes from byte `offset`."""

    name: str
    offset: int
    size: int


class _Window:
    """A moving window over a file, so that small members do not cost a read each."""

    def __init__(self, read: Callable[[int, int], bytes], chunk: int):
        self._read, self._chunk, self._start, self._data = read, chunk, 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            self._start, at = offset, 0
            self._data = self._read(offset, max(size, self._chunk))
        return self._data[at : at + size]


def scan(read: Callable[[int, int], bytes], size: int, name: str, remote: bool = False) -> Iterator[Member]:
    """The regular files of an archive, in its order.

    Args:
      read: (offset, size) -> bytes, fewer where the file ends.
      size: of the archive, in bytes.
      name: for messages.
      remote: reads are requests: fewer and larger.

    Raises:
      UserError: the archive is cut off (as half a download is), compressed, or damaged.
    """
    window = _Window(read, _CHUNK[remote])
    offset, extra, everywhere = 0, {}, {}
    while True:
        header = window(offset, _BLOCK) if offset < size else b""  # stores refuse what begins beyond the end
        if len(header) < _BLOCK:
            raise _cut(name, size)
        if header == _ZERO:
            _check_end(read, offset, size, name)
            return
        _check(header, name, offset)
        kind, length = header[156:157], _number(header[124:136], name, offset)
        data = offset + _BLOCK
        if kind in (b"x", b"g", b"L", b"K"):
            if length > _LONGEST_HEADER:
                raise _damaged(name, offset, f"a header of {length} bytes")
            body = window(data, length) if data < size else b""
            if len(body) < length:
                raise _cut(name, size)
            if kind == b"L":
                extra["path"] = body.rstrip(b"\0")
            elif kind != b"K":
                (extra if kind == b"x" else everywhere).update(_pax(body, name, offset))
            offset = data + _padded(length)
            continue
        fields, extra = {**everywhere, **extra}, {}
        if kind == b"S" or any(key.startswith("GNU.sparse") for key in fields):
            raise UserError(f"archive '{name}' holds a sparse file at byte {offset}; write it again with plain files")
        if "size" in fields and kind not in _NO_DATA:
            length = _decimal(fields["size"], name, offset)
        end = data + (0 if kind in _NO_DATA else _padded(length))
        if kind in _FILES:
            raw = fields.get("path") or _own_name(header)
            if not raw.endswith(b"/"):  # an old archive's way to write a folder
                yield Member(raw.decode("utf-8", "surrogateescape"), data, length)
        offset = end


def _check_end(read: Callable[[int, int], bytes], offset: int, size: int, name: str) -> None:
    """An archive ends in blocks of zeros. So does what a downloader that reserves the space first has not reached yet."""
    if size - offset > _LONGEST_END or read(offset, size - offset).strip(b"\0"):
        what = f"ends at byte {offset} of {size} (half-written, or two archives in one file?)"
        raise UserError(f"archive '{name}' {what}; download or write it again, or leave it out")


def _padded(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _own_name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _check(header: bytes, name: str, offset: int) -> None:
    """The header's own checksum: the sum of its bytes, its eight own ones taken as spaces."""
    try:
        stated = int(header[148:156].split(b"\0")[0].strip() or b"x", 8)
    except ValueError:
        stated = -1
    if stated == sum(header) - sum(header[148:156]) + 256:
        return
    if offset == 0:
        packed = header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] in (b"\xfd7zX", b"\x28\xb5\x2f\xfd")
        why = "is compressed; random access needs a plain tar: unpack it (gunzip, zstd -d, ...)" if packed else "is no tar archive"
        raise UserError(f"'{name}' {why}")
    raise _damaged(name, offset, "no member's header where one should be")


def _number(field: bytes, name: str, offset: int) -> int:
    """Octal digits, or, with the first bit set, a big-endian number (GNU, beyond 8 GiB)."""
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if value >= 1 << 62:
            raise _damaged(name, offset, "a negative or absurd size")
        return value
    text = field.split(b"\0")[0].strip()
    try:
        value = int(text or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _damaged(name, offset, "a size that is no number")
    return value


def _decimal(text: bytes, name: str, offset: int) -> int:
    if not text.isdigit() or len(text) > 18:
        raise _damaged(name, offset, "a size that is no number")
    return int(text)


def _pax(body: bytes, name: str, offset: int) -> dict[str, bytes]:
    """Records `LENGTH KEY=VALUE\\n`, where LENGTH counts all of the record; those that matter here."""
    out, at = {}, 0
    while at < len(body) and body[at]:
        space = body.find(b" ", at, at + 20)
        length = int(body[at:space]) if space > at and body[at:space].isdigit() else 0
        record = body[space + 1 : at + length - 1]
        key, equals, value = record.partition(b"=")
        if not equals or at + length > len(body) or body[at + length - 1 : at + length] != b"\n":
            raise _damaged(name, offset, "a pax header that does not parse")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse"):
            out[key.decode()] = value
        at += length
    return out


def _cut(name: str, size: int) -> UserError:
    return UserError(f"archive '{name}' is cut off after {size} bytes (half-written?); download or write it again, or leave it out")


def _damaged(name: str, offset: int, what: str) -> UserError:
    return UserError(f"archive '{name}' is damaged at byte {offset}: {what}; download or write it again, or leave it out")
