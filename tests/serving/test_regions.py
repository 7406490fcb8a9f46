"""Shared memory as the server takes, reads and writes it, without a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.failures import UnavailableError
from mlpdeploy.serving.protocol import regions as module
from mlpdeploy.serving.protocol.limits import Budget, RefusedError
from mlpdeploy.serving.protocol.regions import RegionReader, Regions

SIZE = 1000


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A folder as /dev/shm, with an object of 1000 bytes that count up."""
    (tmp_path / "object").write_bytes(bytes(np.arange(SIZE, dtype=np.uint8)))
    return tmp_path


@pytest.fixture
def regions(memory: Path) -> Regions:
    """Regions with `r`: bytes 100 to 600 of the object."""
    made = Regions(Budget(SIZE), True, memory)
    made.register("r", "/object", 100, 500)
    return made


def place(regions: Regions, **parameters: Any) -> Any:
    return regions.place("x", {f"shared_memory_{name}": value for name, value in parameters.items()})


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_offsets_of_the_region_and_of_the_tensor_add_up(regions: Regions, memory: Path) -> None:
    data = RegionReader(regions).read(place(regions, region="r", offset=20, byte_size=4))
    assert bytes(data) == bytes([120, 121, 122, 123])
    written = place(regions, region="r", offset=496, byte_size=4).write(memoryview(b"abc"))
    assert written.parameters() == {
        "shared_memory_region": "r",
        "shared_memory_offset": 496,
        "shared_memory_byte_size": 3,
    }
    changed = (memory / "object").read_bytes()
    assert changed[596:599] == b"abc" and len(changed) == SIZE
    assert changed[:596] + changed[599:] == bytes(np.arange(SIZE, dtype=np.uint8))[:596] + changed[599:]


def test_a_tensor_that_is_sent_is_in_no_place(regions: Regions) -> None:
    assert regions.place("x", {"binary_data_size": 4}) is None


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"region": "s", "byte_size": 4}, "unknown region 's'"),
        ({"region": 3, "byte_size": 4}, "unknown region '3'"),
        ({"byte_size": 4}, "unknown region"),
        ({"offset": 4}, "unknown region"),
        ({"region": "r"}, "shared_memory_byte_size is None"),
        ({"region": "r", "byte_size": "4"}, "shared_memory_byte_size is 4; wanted a whole number"),
        ({"region": "r", "byte_size": 4, "offset": -1}, "shared_memory_offset is -1"),
        ({"region": "r", "byte_size": 501}, "'x' is in bytes 0 to 501 of region 'r'; wanted at most 500"),
        ({"region": "r", "byte_size": 1, "offset": 500}, "bytes 500 to 501"),
        ({"region": "r", "byte_size": 2**62, "offset": 2**62}, "at most 500"),
    ],
)
def test_places_outside_of_a_region_are_refused(regions: Regions, parameters: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        place(regions, **parameters)


@pytest.mark.parametrize(
    ("key", "offset", "byte_size", "text"),
    [
        ("/object", 501, 500, "bytes 501 to 1001 of '/object'; wanted at most 1000"),
        ("/object", 0, 0, "byte_size is 0; wanted a whole number of at least 1"),
        ("/object", -1, 5, "offset is -1"),
        ("/object", 0, None, "byte_size is None"),
        ("/object", 0, True, "byte_size is True"),
        ("/none", 0, 5, "'/none' cannot be opened .No such file"),
        ("/folder", 0, 5, "'/folder' cannot be opened .Is a directory"),
        ("/link", 0, 5, "'/link' cannot be opened"),
        ("/pipe", 0, 5, "'/pipe' is no shared memory"),
        ("/folder/inner", 0, 5, "the key '/folder/inner'"),
        ("/../" + __file__, 0, 5, "the key"),
        ("..", 0, 5, "the key"),
        ("/.", 0, 5, "the key"),
        ("", 0, 5, "the key ''"),
        ("/", 0, 5, "the key"),
        ("//object", 0, 5, "the key"),
        ("object\0", 0, 5, "the key"),
        ("\udcff", 0, 5, "the key"),
        ("é" * 200, 0, 5, "the key"),
        (3, 0, 5, "the key '3'"),
        (None, 0, 5, "the key 'None'"),
    ],
)
def test_what_is_no_region_is_refused(
    regions: Regions, memory: Path, key: Any, offset: Any, byte_size: Any, text: str
) -> None:
    (memory / "folder").mkdir()
    (memory / "folder" / "inner").write_bytes(bytes(SIZE))
    (memory / "link").symlink_to(memory / "object")
    os.mkfifo(memory / "pipe")
    before = descriptors()
    with pytest.raises(UsageError, match=text):
        regions.register("new", key, offset, byte_size)
    assert [region["name"] for region in regions.status()] == ["r"]
    assert descriptors() == before


@pytest.mark.parametrize("name", ["", "a" * 256, None, 3])
def test_names_that_are_none_are_refused(regions: Regions, name: Any) -> None:
    with pytest.raises(UsageError, match="the name of the region"):
        regions.register(name, "/object", 0, 1)


def test_a_name_is_taken_until_it_is_given_back(regions: Regions) -> None:
    with pytest.raises(UsageError, match="region 'r' is registered already"):
        regions.register("r", "/object", 0, 5)
    regions.unregister("r")
    regions.unregister("r")
    regions.register("r", "object", 0, 5)
    assert regions.status("r") == [{"name": "r", "key": "object", "offset": 0, "byte_size": 5}]
    regions.register("s", "/object", 2, 3)
    regions.unregister()
    assert regions.status() == []
    with pytest.raises(UsageError, match="unknown region 's'"):
        regions.status("s")


def test_so_many_regions_and_no_more(regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REGIONS", 2)
    regions.register("s", "/object", 0, 1)
    with pytest.raises(UsageError, match="2 regions are registered"):
        regions.register("t", "/object", 0, 1)


def test_the_file_is_closed_when_the_last_request_has_let_go(memory: Path) -> None:
    before = descriptors()
    regions = Regions(Budget(SIZE), True, memory)
    regions.register("r", "/object", 0, SIZE)
    held = place(regions, region="r", byte_size=4)
    regions.unregister("r")
    assert bytes(RegionReader(regions).read(held)) == bytes(range(4))
    assert len(descriptors()) == len(before) + 1
    del held
    assert descriptors() == before


def test_memory_that_its_owner_makes_shorter_ends_a_request_and_no_process(regions: Regions, memory: Path) -> None:
    os.truncate(memory / "object", 300)
    with pytest.raises(UsageError, match="'/object' has become shorter than region 'r'"):
        RegionReader(regions).read(place(regions, region="r", byte_size=500))
    with pytest.raises(UsageError, match="has become shorter"):
        place(regions, region="r", offset=190, byte_size=20).write(memoryview(bytes(11)))
    assert (memory / "object").stat().st_size == 300


def test_an_output_that_does_not_fit_is_refused(regions: Regions) -> None:
    with pytest.raises(UsageError, match="an output has 5 bytes; wanted at most the 4 of region 'r'"):
        place(regions, region="r", byte_size=4).write(memoryview(bytes(5)))


def test_memory_that_cannot_be_written_is_told(regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UnavailableError, match=r"'r' cannot be written \(No space left"):
        place(regions, region="r", byte_size=4).write(memoryview(bytes(4)))


def test_reads_and_writes_that_the_system_cuts_short_go_on(
    regions: Regions, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: read(file, [buffers[0][:7]], at))
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:7], at))
    assert bytes(RegionReader(regions).read(place(regions, region="r", byte_size=40))) == bytes(range(100, 140))
    place(regions, region="r", byte_size=40).write(memoryview(bytes(40)))
    assert (memory / "object").read_bytes()[99:141] == bytes([99, *[0] * 40, 140])


def test_what_is_read_counts_as_a_body_until_it_is_dropped(regions: Regions) -> None:
    reader = RegionReader(regions)
    first = np.frombuffer(reader.read(place(regions, region="r", byte_size=500)), np.uint8)[:3]
    assert regions.budget.used == 500
    second = reader.read(place(regions, region="r", byte_size=500))
    with pytest.raises(UnavailableError, match="too much is being uploaded"):
        reader.read(place(regions, region="r", byte_size=1))
    del first
    assert regions.budget.used == 500
    del second
    assert regions.budget.used == 0


def test_the_inputs_of_a_request_are_no_larger_than_a_body(regions: Regions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BODY_BYTES", 600)
    reader = RegionReader(regions)
    reader.read(place(regions, region="r", byte_size=300))
    reader.read(place(regions, region="r", byte_size=300))
    with pytest.raises(RefusedError) as error:
        reader.read(place(regions, region="r", byte_size=1))
    assert error.value.status == 413
    RegionReader(regions).read(place(regions, region="r", byte_size=300))


def test_nothing_is_opened_unless_it_is_allowed(memory: Path) -> None:
    regions = Regions(Budget(SIZE), memory=memory)
    before = descriptors()
    with pytest.raises(UsageError, match="this server reads no shared memory; start it with --shared-memory"):
        regions.register("r", "/object", 0, 5)
    with pytest.raises(UsageError, match="'x' is in shared memory, which this server does not read"):
        place(regions, region="r", byte_size=4)
    regions.unregister()
    assert (regions.status(), descriptors()) == ([], before)
