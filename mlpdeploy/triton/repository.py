"""Write a Triton repository: each model's folder appears whole, and a folder that is there is not touched unasked."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mlpdeploy.artifact import disk_errors, new_artifact
from mlpdeploy.classification import classifier_preprocessing
from mlpdeploy.errors import UsageError
from mlpdeploy.manifest import FILE_NAME, Manifest, read_manifest
from mlpdeploy.plugins.find import LIBRARY_NAME, REGISTER_VARIABLE
from mlpdeploy.triton.config import (
    LABELS_NAME,
    ensemble_config,
    model_config,
    preprocess_config,
    text_of,
)
from mlpdeploy.triton.options import TritonOptions
from mlpdeploy.triton.source import Source, find_source

CONFIG_NAME = "config.pbtxt"
PREPROCESS, PIPELINE = "_preprocess", "_photos"  # ends the names of the models around a model


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        repository: the folder.
        models: their names, those that Triton's users ask for last.
        command: that starts Triton on it.
    """

    repository: Path
    models: tuple[str, ...]
    command: str


def write_repository(
    artifacts: Mapping[str, Path], output: Path, options: TritonOptions, *, force: bool = False
) -> Written:
    """Write a model for each artifact into a repository that may hold others, all of them or none.

    Args:
        artifacts: {model name in Triton: artifact folder}.
        output: the repository.
        options: for all of them.
        force: replace models of these names, but for the newest other versions that `options` keeps.

    Raises:
        UsageError: a model of that name is there, options contradict each other, or an ensemble of what is no
            classifier of photographs is asked for.
        ArtifactError: an artifact is damaged, or the repository cannot be written.
        PluginError: an engine's plugin library is missing.
        MissingDependencyError: tritonclient is not installed.
    """
    options.check()
    manifests = {name: read_manifest(directory) for name, directory in artifacts.items()}
    sources = {name: find_source(directory, manifests[name], options) for name, directory in artifacts.items()}
    writers: dict[str, Callable[[Path], None]] = {}
    for name, directory in artifacts.items():
        writers |= _writers(name, directory, manifests[name], sources[name], options)
    if len(writers) < len(artifacts) * (3 if options.ensemble else 1):
        raise UsageError("two models of the same name", "names that differ", "give one as NAME=DIRECTORY")
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is a file", "a folder", "choose another with -o")
    for name in writers:
        _check_place(output / name, force)
    with ExitStack() as stack:
        # Folders take their names in reverse order of this loop: a pipeline after the models that it is made of.
        for name in reversed(writers):
            folder = stack.enter_context(new_artifact(output / name))
            writers[name](folder)
            _keep_versions(output / name, folder, options)
    command = ["tritonserver", f"--model-repository={output.resolve()}"]
    plugins = {(output / name / LIBRARY_NAME).resolve() for name, source in sources.items() if source.plugin}
    if plugins:
        # Triton opens the library, which registers itself where it is asked to.
        command = ["env", f"{REGISTER_VARIABLE}=1", *command]
        command.append(f"--backend-config=tensorrt,plugins={';'.join(map(str, sorted(plugins)))}")
    return Written(output, tuple(writers), shlex.join(command))


def _check_place(place: Path, force: bool) -> None:
    """Refuse to write over what is there, unless it is a model and `force` is given."""
    if not place.exists():
        return
    if not (place / CONFIG_NAME).is_file():
        raise UsageError(f"{place} is no model of Triton, so it is not replaced even with --force", fix="move it away")
    if not force:
        raise UsageError(f"{place} is there already", fix="pass --force to replace it, or choose another repository")


def _keep_versions(before: Path, folder: Path, options: TritonOptions) -> None:
    """Copy the newest other versions of a model that is replaced, with the new one as many as are served."""
    if not before.is_dir():
        return
    versions = {int(path.name): path for path in before.iterdir() if path.is_dir() and path.name.isdigit()}
    versions.pop(options.version, None)
    with disk_errors(folder):
        for number in sorted(versions, reverse=True)[: options.keep_versions - 1]:
            shutil.copytree(versions[number], folder / versions[number].name)


def _writers(
    name: str, directory: Path, manifest: Manifest, source: Source, options: TritonOptions
) -> dict[str, Callable[[Path], None]]:
    """Return {model name: function that writes its folder} of one artifact."""
    config = text_of(model_config(name, manifest, source, options))

    def write_model(folder: Path) -> None:
        _write(folder, config, manifest)
        _copy(source.files, folder / str(options.version))
        if source.plugin is not None:
            shutil.copyfile(source.plugin, folder / LIBRARY_NAME)

    if not options.ensemble:
        return {name: write_model}
    classifier_preprocessing(manifest, directory)
    if not source.max_batch:
        raise UsageError(f"--ensemble for {directory}, which fixes its batch", "an artifact with --batch dynamic")
    names = name + PREPROCESS, name + PIPELINE
    prepares = text_of(preprocess_config(names[0], manifest, source, options))
    pipeline = text_of(ensemble_config(names[1], (names[0], name), manifest, source, options))

    def write_preprocess(folder: Path) -> None:
        _write(folder, prepares, None)
        program = Path(__file__).with_name("preprocess.py")
        _copy({"model.py": program, FILE_NAME: directory / FILE_NAME}, folder / str(options.version))

    def write_pipeline(folder: Path) -> None:
        _write(folder, pipeline, manifest)
        (folder / str(options.version)).mkdir()  # Triton wants it, with nothing in it

    return {name: write_model, names[0]: write_preprocess, names[1]: write_pipeline}


def _write(folder: Path, config: str, manifest: Manifest | None) -> None:
    """Write the configuration, and the labels where they are given."""
    with disk_errors(folder):
        (folder / CONFIG_NAME).write_text(config)
        if manifest is not None and manifest.labels:
            (folder / LABELS_NAME).write_text("\n".join(manifest.labels) + "\n", encoding="utf-8")


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    with disk_errors(folder):
        folder.mkdir()
        for name, path in files.items():
            shutil.copyfile(path, folder / name)
