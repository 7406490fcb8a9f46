"""Write an artifact folder, or a file in one: a killed command leaves the old state or the new, never a mixture."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlpdeploy.errors import ArtifactError, UsageError
from mlpdeploy.manifest import FILE_NAME, Manifest

_YOUNG_SECONDS = 3600.0
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_YOURS = (errno.EACCES, errno.EPERM, errno.EROFS)
_OWN_FOLDER = "make it and the folder around it writable, or use a folder that you own"
# What is wrong with the path itself -> what to do about it.
_WRONG_PATH = {
    errno.EISDIR: "choose a name that no folder has",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOENT: "make its folder first",
    errno.ENOTDIR: "choose another folder",
    errno.EEXIST: "choose another folder",
}


@contextmanager
def disk_errors(path: Path, fix: str = "") -> Iterator[None]:
    """Turn the operating system's refusals to write at `path` into one clear ArtifactError.

    Args:
        path: for the message.
        fix: what to do where it cannot be a file of this user; empty says it for any place.
    """
    try:
        yield
    except OSError as error:
        # numpy gives no error number: "100 requested and 0 written".
        if error.errno in _NO_SPACE or (error.errno is None and "requested and" in str(error)):
            raise ArtifactError(
                f"no space left to write {path}", fix="free some space or choose another folder; nothing was changed"
            ) from error
        other = error.errno == errno.ENOENT and os.path.isdir(path.parent)  # something else is missing
        if error.errno in _NOT_YOURS or (error.errno in _WRONG_PATH and not other):
            raise ArtifactError(
                f"{path} cannot be written ({os.strerror(error.errno)})",
                fix=fix or _WRONG_PATH.get(error.errno, _OWN_FOLDER),
            ) from error
        raise


def check_files(*paths: Path | None, new_folder: bool = False) -> None:
    """Refuse places that no file can be written to, before the work whose results go there; None is no place.

    Args:
        paths: of the files.
        new_folder: a file's folder will be made where it is missing.

    Raises:
        UsageError: it is a folder or a device, or its folder is missing or not this user's.
    """
    for path in filter(None, paths):
        if os.path.exists(path) and not os.path.isfile(path):
            raise UsageError(f"{path} is {'a folder' if os.path.isdir(path) else 'no regular file'}", "a file's name")
        if not os.path.isdir(path.parent):
            if not new_folder:
                raise UsageError(f"there is no folder {path.parent}", fix=_WRONG_PATH[errno.ENOENT])
        elif not os.access(path.parent, os.W_OK):
            raise UsageError(
                f"no file can be made in {path.parent}", fix="make it writable, or use a folder that you own"
            )


def check_output(directory: Path, force: bool) -> None:
    """Refuse an output folder that holds something, before any work is done.

    Raises:
        UsageError: it exists and `force` is not given, or it holds something that is not an artifact.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UsageError(f"{directory} is a file", "a folder", "choose another with -o")
    if any(directory.iterdir()):
        if not (directory / FILE_NAME).exists():
            raise UsageError(
                f"{directory} exists and holds no artifact, so it is not replaced even with --force",
                fix="choose another with -o",
            )
        if not force:
            raise UsageError(f"{directory} already holds an artifact", fix="pass --force to replace it, or another -o")


def state_of_folder(directory: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return what changes where another command writes a file into the folder, removes or replaces one."""
    found = set()
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if not path.is_dir():
                state = path.lstat()
                found.add((str(path.relative_to(directory)), state.st_ino, state.st_size, state.st_mtime_ns))
    return frozenset(found)


def changed_meanwhile(directory: Path) -> ArtifactError:
    """Return the error that another command has changed the folder that this one was about to change."""
    return ArtifactError(f"{directory} was changed by another command meanwhile", fix="run this one again")


@contextmanager
def new_artifact(directory: Path, fix: str = "") -> Iterator[Path]:
    """Yield a fresh folder beside `directory`, which takes that name when the block ends well, and vanishes otherwise.

    Args:
        directory: the folder to make or to replace; where it is a link, what it points to.
        fix: see `disk_errors`.

    Raises:
        ArtifactError: the place cannot be written, or the disk is full.
    """
    directory = Path(os.path.realpath(directory))
    with disk_errors(directory, fix):
        directory.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(directory)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
        try:
            with lock_folder(staging):
                staging.chmod(0o755)
                yield staging
                for path in staging.rglob("*"):
                    _sync(path)
                _sync(staging)
                _replace_folder(staging, directory)
                _sync(directory.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _remove_abandoned(directory: Path) -> None:
    """Remove what killed commands left beside an artifact an hour ago or more; who is at work holds its folder."""
    for path in directory.parent.glob(f".{glob.escape(directory.name)}.*.partial"):
        with contextlib.suppress(OSError):  # somebody else's, or removed by somebody else
            if path.is_symlink() or not path.is_dir() or time.time() - path.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with lock_folder(path) as mine:
                if mine:
                    shutil.rmtree(path)


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Hold a folder against other processes; yields whether nobody else holds it. The lock ends with the process.

    Without `fcntl` (Windows) nobody is asked.
    """
    try:
        import fcntl
    except ImportError:
        yield True
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def _replace_folder(staging: Path, directory: Path) -> None:
    """Give `staging` the name `directory`; what had that name is left under the name `staging`."""
    if not directory.exists():
        staging.rename(directory)
    elif not _exchange(staging, directory):
        aside = staging.with_suffix(".replaced")
        directory.rename(aside)
        try:
            staging.rename(directory)
        except OSError:
            aside.rename(directory)
            raise
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step where the system can (Linux `renameat2`); return whether it did."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: temporary file, fsync, rename."""
    with disk_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
        _sync(path.parent)


def keep_file(written: Path, path: Path) -> None:
    """Give a file that is whole its name in the artifact; both places are on one file system."""
    with disk_errors(path):
        _sync(written)
        os.replace(written, path)
        os.chmod(path, 0o644)
        _sync(path.parent)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into an artifact folder."""
    write_file(directory / FILE_NAME, manifest.to_json().encode())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
