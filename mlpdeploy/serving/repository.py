"""The models of a server: from folders to names, and from one version to the next without losing a request."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mlpdeploy.env import closest
from mlpdeploy.errors import ArtifactError, MlpDeployError, UsageError
from mlpdeploy.manifest import FILE_NAME, Manifest, read_manifest
from mlpdeploy.serving.failures import UnknownModelError
from mlpdeploy.serving.interface import Served, Start
from mlpdeploy.serving.model import ServedModel
from mlpdeploy.serving.options import ServeOptions

# A model that was replaced closes after so long without a request: who looked it up just before still gets an answer.
LINGER_SECONDS = 2.0
UNVERSIONED = "1"  # the version of an artifact that is no version folder
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Files = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Place:
    """Where a model is served from: an artifact folder, or a folder of version folders `1`, `2`, ..."""

    name: str
    path: Path

    def newest(self) -> tuple[str, Path]:
        """Return (version, artifact folder), whether the artifact is in order or not.

        Raises:
            ArtifactError: the folder cannot be read.
        """
        try:
            if (self.path / FILE_NAME).exists() or not self.path.is_dir():
                return UNVERSIONED, self.path
            names = os.listdir(self.path)
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read ({error})") from error
        versions = [int(name) for name in names if re.fullmatch(r"[1-9]\d{0,17}", name)]
        version = str(max(versions, default=0))
        return (version, self.path / version) if versions else (UNVERSIONED, self.path)


@dataclass(frozen=True)
class Reloaded:
    """What a reload did with one model.

    Attributes:
        name: of the model.
        version: that serves now.
        changed: whether it is another one than before.
        error: why the new one was refused; None where it was not.
    """

    name: str
    version: str
    changed: bool
    error: MlpDeployError | None = None


class ModelRepository:
    """All models of a server, by name. `async with` loads and warms them, and closes them in the end."""

    def __init__(
        self, folders: Sequence[str | Path], options: ServeOptions | None = None, start_model: Start | None = None
    ) -> None:
        """Take `DIR` or `NAME=DIR` each; without a name, the manifest's model name is taken.

        Args:
            folders: of the artifacts.
            options: None means the default ones.
            start_model: starts one model; None has worker processes on this machine compute it.

        Raises:
            UsageError: no folder, a name that cannot stand in an address, or two models of one name.
            ArtifactError: a folder is no artifact.
        """
        self.options = options or ServeOptions()
        self._start_model: Start = start_model or ServedModel.start
        self._places: dict[str, Place] = {}
        for folder in folders:
            place = _place(folder)
            if place.name in self._places:
                raise UsageError(
                    f"two models named {place.name}: {self._places[place.name].path} and {place.path}",
                    fix="name one of them: NAME=DIR",
                )
            self._places[place.name] = place
        if not self._places:
            raise UsageError("no artifact folder", "at least one")
        self._models: dict[str, Served] = {}
        self._replaced: list[Served] = []
        self._closed = False
        self._refused: dict[str, Files] = {}
        self._retirements: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()

    async def __aenter__(self) -> ModelRepository:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(self.options.drain_seconds if kind is None else 0.0)

    async def start(self) -> None:
        """Load and warm all models, side by side.

        Raises:
            MlpDeployError: one cannot be loaded; then none is left running.
        """
        loading = [asyncio.ensure_future(self._load(place)) for place in self._places.values()]
        try:
            loaded = await asyncio.gather(*loading)
        except BaseException:
            for task in loading:
                task.cancel()
            for result in await asyncio.gather(*loading, return_exceptions=True):
                if not isinstance(result, BaseException):
                    await result.close()
            raise
        self._models = {model.name: model for model in loaded}

    async def _load(self, place: Place) -> Served:
        version, directory = place.newest()
        manifest = read_manifest(directory)
        return await self._start_model(place.name, version, directory, manifest, self.options)

    def get(self, name: str, version: str = "") -> Served:
        """Return the model that serves under a name; ask again for each request, just before `infer`.

        A version that was replaced is answered while it is still loaded.

        Raises:
            UnknownModelError: no such model or version.
        """
        model = self._models.get(name)
        if model is None:
            raise UnknownModelError(f"unknown model {name[:100]!r}", fix=closest(name[:100], self._models))
        if version in ("", model.version):
            return model
        for replaced in self._replaced:
            if (replaced.name, replaced.version) == (name, version):
                return replaced
        raise UnknownModelError(f"model {name} has no version {version[:100]!r}", f"version {model.version}")

    def models(self) -> list[Served]:
        """Return the models that serve, in the order of the folders."""
        return [self._models[name] for name in self._places if name in self._models]

    @property
    def ready(self) -> bool:
        """Whether every model is ready."""
        return len(self._models) == len(self._places) and all(model.ready for model in self._models.values())

    async def reload(self, name: str | None = None, again: bool = True) -> list[Reloaded]:
        """Look at the folders again: load what is new beside what serves, warm it, and swap.

        A new artifact that cannot be loaded is refused, and the old one serves on.

        Args:
            name: of the model; None means all.
            again: try what was refused before, even if its files are the same; for who asks every few seconds, False.

        Raises:
            UnknownModelError: no such model.
        """
        if name is not None:
            self.get(name)
        async with self._reloading:
            places = [place for place in self._places.values() if name in (None, place.name)]
            return [await self._reload(place, again) for place in places]

    async def _reload(self, place: Place, again: bool) -> Reloaded:
        old = self._models[place.name]
        files: Files = ()
        try:
            version, directory = place.newest()
            files = _files(directory)
            if not again and self._refused.get(place.name) == files:
                return Reloaded(place.name, old.version, False)
            if (version, read_manifest(directory)) == (old.version, old.manifest):
                return Reloaded(place.name, old.version, False)
            new = await self._load(place)
        except MlpDeployError as error:
            self._refused[place.name] = files
            return Reloaded(place.name, old.version, False, error)
        if self._closed:
            await new.close()
            return Reloaded(place.name, old.version, False)
        self._models[place.name] = new
        self._replaced.append(old)
        task = asyncio.create_task(self._retire(old))
        self._retirements.add(task)
        task.add_done_callback(self._retirements.discard)
        return Reloaded(place.name, new.version, True)

    async def _retire(self, model: Served) -> None:
        """Close a model that was replaced, once nothing asks for it any more."""
        asked = -1
        while asked != (asked := model.asked):
            await asyncio.sleep(LINGER_SECONDS)
        await model.close(self.options.drain_seconds)
        self._replaced.remove(model)

    async def close(self, drain_seconds: float | None = None) -> None:
        """Take no more requests, answer what is accepted within `drain_seconds`, and end all workers."""
        seconds = self.options.drain_seconds if drain_seconds is None else drain_seconds
        self._closed = True
        for task in self._retirements:
            task.cancel()
        await asyncio.gather(*self._retirements, return_exceptions=True)
        models = [*self._models.values(), *self._replaced]
        await asyncio.gather(*(model.close(seconds) for model in models))
        self._replaced.clear()


def _files(directory: Path) -> Files:
    """Return (path, bytes, time of the last change) of the files in a folder; nothing where it cannot be read."""
    try:
        found = [(path, path.stat()) for path in sorted(directory.iterdir())]
    except OSError:
        return ()
    return tuple((str(path), status.st_size, status.st_mtime_ns) for path, status in found)


def _place(folder: str | Path) -> Place:
    """Return where `DIR` or `NAME=DIR` points to."""
    text = str(folder)
    name, equals, rest = text.partition("=")
    if equals and _NAME.fullmatch(name) and not Path(text).exists():
        return Place(name, Path(rest))
    path = Path(text)
    named = str(_manifest_of(path).model.get("name", ""))
    if not _NAME.fullmatch(named):
        raise UsageError(f"the model in {path} is named {named!r}", "letters, digits, . _ -", "name it: NAME=DIR")
    return Place(named, path)


def _manifest_of(path: Path) -> Manifest:
    return read_manifest(Place("", path).newest()[1])
