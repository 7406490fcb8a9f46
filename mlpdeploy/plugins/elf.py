"""What a shared library shows and wants: symbols and other libraries, read from the ELF file itself."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.errors import PluginError

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_ENTRY = struct.Struct("<qQ")
_DYNSYM, _DYNAMIC = 11, 6
_NEEDED = 1
_LOCAL = 0


@dataclass(frozen=True)
class Symbols:
    """Names of the dynamic symbols: those that the library defines, and those that it wants from others."""

    defined: tuple[str, ...]
    undefined: tuple[str, ...]


def read_symbols(path: Path) -> Symbols:
    """Return the dynamic symbols of a 64-bit little-endian shared library.

    Raises:
        PluginError: the file is no such library, or is damaged.
    """
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise PluginError(f"{path} is no 64-bit shared library", fix="run: mlpdeploy plugin build --force")
    try:
        return _symbols(data)
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise PluginError(f"{path} is damaged", fix="run: mlpdeploy plugin build --force") from error


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Return the names of the libraries that a shared library asks for.

    Raises:
        PluginError: the file is no such library, or is damaged.
    """
    data = path.read_bytes()
    try:
        return tuple(_needed(data))
    except (struct.error, IndexError, ValueError) as error:
        raise PluginError(f"{path} is damaged, or no 64-bit shared library") from error


def _needed(data: bytes) -> Iterator[str]:
    sections = _sections(data)
    for section in sections:
        if section[1] != _DYNAMIC:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], _ENTRY.size):
            tag, value = _ENTRY.unpack_from(data, at)
            if tag == _NEEDED:
                yield data[strings + value : data.index(b"\0", strings + value)].decode()


def _sections(data: bytes) -> list[tuple[int, ...]]:
    (table,) = struct.unpack_from("<Q", data, 0x28)
    size, count = struct.unpack_from("<HH", data, 0x3A)
    return [_SECTION.unpack_from(data, table + index * size) for index in range(count)]


def _symbols(data: bytes) -> Symbols:
    sections = _sections(data)
    defined: list[str] = []
    undefined: list[str] = []
    for section in sections:
        if section[1] != _DYNSYM:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, info, _, index, _, _ = _SYMBOL.unpack_from(data, at)
            if info >> 4 == _LOCAL:
                continue
            end = data.index(b"\0", strings + name)
            (defined if index else undefined).append(data[strings + name : end].decode())
    return Symbols(tuple(sorted(defined)), tuple(sorted(undefined)))
