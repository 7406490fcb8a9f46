"""Nothing is ever half written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy import artifact as module
from mlpdeploy.artifact import check_files, check_output, keep_file, lock_folder, new_artifact, write_file
from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import FILE_NAME


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def old_artifact(tmp_path: Path) -> Path:
    target = tmp_path / "out"
    target.mkdir()
    (target / FILE_NAME).write_text("old")
    return target


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with new_artifact(tmp_path / "deep" / "out") as staging:
        (staging / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep") == ["out"]
    assert names(tmp_path / "deep" / "out") == ["a"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_old_folder_is_replaced_or_kept(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    target = old_artifact(tmp_path)
    with pytest.raises(RuntimeError), new_artifact(target) as staging:
        (staging / "a").write_text("1")
        raise RuntimeError
    assert names(target) == [FILE_NAME]
    with new_artifact(target) as staging:
        (staging / "a").write_text("1")
    assert names(target) == ["a"]
    assert names(tmp_path) == ["out"]


def test_the_old_artifact_stays_where_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, rename = old_artifact(tmp_path), Path.rename

    def refuse(path: Path, other: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(errno.EACCES, "Permission denied")
        return rename(path, other)

    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ArtifactError, match="cannot be written"), new_artifact(target) as staging:
        (staging / "a").write_text("1")
    assert names(tmp_path) == ["out"]
    assert (target / FILE_NAME).read_text() == "old"


def test_everybody_may_read_what_is_written(tmp_path: Path) -> None:
    """A server is often another user; what `tempfile` makes is its maker's alone."""
    with new_artifact(tmp_path / "out") as staging:
        write_file(staging / "written", b"1")
        handle, name = tempfile.mkstemp(dir=staging)
        os.close(handle)
        keep_file(Path(name), staging / "kept")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out", *(tmp_path / "out").iterdir())}
    assert modes == {"out": 0o755, "written": 0o644, "kept": 0o644}


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    link = tmp_path / "current"
    link.symlink_to("models/one")
    for text in ("new", "newer"):  # the link dangles at first
        with new_artifact(link) as staging:
            (staging / "file").write_text(text)
        assert os.readlink(link) == "models/one"
        assert (tmp_path / "models" / "one" / "file").read_text() == text
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert os.listdir(tmp_path / "models") == ["one"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    target = old_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="no space left"), new_artifact(target) as staging:
        (staging / "a").write_text("1")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == ["out"]


def test_numpy_on_a_full_disk_gives_no_error_number(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match="no space left"),
        new_artifact(tmp_path / "out"),
        open("/dev/full", "wb") as file,
    ):
        np.zeros(100_000).tofile(file)


def test_a_real_limit_on_file_size(tmp_path: Path) -> None:
    """The kernel refuses the write, as on a full disk."""
    code = """
        import resource, signal, sys
        from pathlib import Path
        from mlpdeploy.artifact import write_file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        write_file(Path(sys.argv[1]) / "a", b"x" * 100000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True)
    assert "ArtifactError: no space left" in done.stderr
    assert names(tmp_path) == []


def test_killed_while_writing_leaves_the_old_artifact(tmp_path: Path) -> None:
    target = old_artifact(tmp_path)
    code = """
        import os, sys, time
        from pathlib import Path
        from mlpdeploy.artifact import new_artifact
        with new_artifact(Path(sys.argv[1])) as staging:
            (staging / "half").write_text("1")
            print("ready", flush=True)
            time.sleep(60)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(target)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (target / FILE_NAME).read_text() == "old"
    assert names(target) == [FILE_NAME]


def test_what_killed_commands_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    def left(name: str, age: float) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(b"half of it")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
        return tmp_path / name

    old, young, others = left(".a.x1.partial", 4000), left(".a.x2.partial", 3000), left(".ab.x3.partial", 4000)
    busy = left(".a.x4.partial", 4000)
    (tmp_path / ".a.x5.partial").symlink_to(others)
    with lock_folder(busy) as mine:
        assert mine
        with new_artifact(tmp_path / "a") as staging:
            assert not old.exists() and staging.exists()
            with lock_folder(staging) as free:
                assert not free
    assert young.exists() and others.exists() and busy.exists() and (tmp_path / ".a.x5.partial").is_symlink()


def test_write_file_replaces_or_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "a", b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="no space left"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"), new_artifact(tmp_path / "file" / "out"):
        pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("folder", "Is a directory.*a name that no folder has"),
        ("none/a", "No such file or directory.*make its folder"),
        ("a" * 300, "File name too long.*a shorter name"),
    ],
)
def test_a_path_that_no_file_can_have(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=text):
        write_file(tmp_path / name, b"")
    assert names(tmp_path) == ["folder"]


def test_a_file_of_others_that_is_missing_is_no_fault_of_the_place(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_artifact(tmp_path / "out"):
        (tmp_path / "none").read_bytes()


def test_what_to_do_about_a_folder_of_others_fits_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lower` and `build` change an artifact in its place, and have no -o."""

    def refuse(*_: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    text = "make it and the folder around it writable, or use a folder that you own"
    with pytest.raises(ArtifactError, match=text), new_artifact(tmp_path / "out"):
        pass


def test_places_for_files_are_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_files(None, tmp_path / "a")
    check_files(tmp_path / "none" / "a", new_folder=True)
    with pytest.raises(UsageError, match="is a folder"):
        check_files(None, tmp_path)
    with pytest.raises(UsageError, match="no regular file"):
        check_files(Path(os.devnull))
    with pytest.raises(UsageError, match="there is no folder"):
        check_files(tmp_path / "none" / "a")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="no file can be made in"):
        check_files(tmp_path / "a")


def test_what_is_there_is_only_replaced_when_asked(tmp_path: Path) -> None:
    target = old_artifact(tmp_path)
    with pytest.raises(UsageError, match="--force"):
        check_output(target, force=False)
    check_output(target, force=True)
    check_output(tmp_path / "new", force=False)
    (tmp_path / "photos").mkdir()
    check_output(tmp_path / "photos", force=False)
    (tmp_path / "photos" / "holiday.jpg").write_text("")
    with pytest.raises(UsageError, match="not replaced even with --force"):
        check_output(tmp_path / "photos", force=True)
