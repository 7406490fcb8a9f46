"""Put ONNX Runtime's C headers and library into one folder, for CMake's ONNXRUNTIME_ROOT.

    python cpp/get_onnxruntime.py build/onnxruntime

The library is the one inside the installed package `onnxruntime`: the C++ program then computes with the very code that
Python computes with. The package holds no headers. They come from Debian's `libonnxruntime-dev`: from the system where
it is installed, and otherwise from Debian 13 by apt, which checks their signature; nothing is installed, and the
machine's own package lists stay as they are. The headers may be older than the library: its interface is versioned.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HEADER = "onnxruntime_c_api.h"
SYSTEM = (Path("/usr/include/onnxruntime"), Path("/usr/include"), Path("/usr/local/include/onnxruntime"))
SUITE = "trixie"
SOURCE = f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {SUITE} main\n"
ELSEWHERE = (
    "install libonnxruntime-dev, or unpack an archive of ONNX Runtime's own releases and pass its include folder with"
    " --headers"
)


def main() -> None:
    """Make the folder, or name what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--headers", type=Path, help=f"a folder with {HEADER}  [default: the system's, or Debian's]")
    options = parser.parse_args()
    library = library_of_package()
    links = {"libonnxruntime.so": library, "libonnxruntime.so.1": library}
    # A package for GPUs has its providers in files of their own, which are looked for beside it.
    links |= {path.name: path for path in library.parent.glob("libonnxruntime_providers_*.so")}
    for name, target in links.items():
        link = options.folder / "lib" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    include = options.folder / "include"
    if options.headers is not None or not (include / HEADER).is_file():
        put_headers(include, options.headers)
    print(f"{options.folder}: headers, and {library.name} of {library.parent.parent}")


def library_of_package() -> Path:
    """Return the shared library inside the installed Python package."""
    package = importlib.util.find_spec("onnxruntime")
    folders = (package.submodule_search_locations or []) if package else []
    found = [path for folder in folders for path in Path(folder, "capi").glob("libonnxruntime.so.*")]
    if not found:
        sys.exit("the package onnxruntime is not installed, or holds no library; run: pip install onnxruntime")
    return found[0].resolve()


def put_headers(include: Path, given: Path | None) -> None:
    """Copy the headers from the folder given, the system or Debian's package."""
    if given is not None and not (given / HEADER).is_file():
        sys.exit(f"{given} holds no {HEADER}")
    found = given or next((folder for folder in SYSTEM if (folder / HEADER).is_file()), None)
    with tempfile.TemporaryDirectory() as scratch:
        found = found or headers_from_debian(Path(scratch))
        staging = include.with_suffix(".partial")
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for header in found.glob("onnxruntime*.h"):
            shutil.copy(header, staging)
        shutil.rmtree(include, ignore_errors=True)
        staging.rename(include)


def headers_from_debian(scratch: Path) -> Path:
    """Return the folder with the headers of Debian's package, unpacked under `scratch`.

    apt works with lists and a cache of its own there.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            sys.exit(f"ONNX Runtime's C headers are not there, and neither is {tool}; {ELSEWHERE}")
    (scratch / "sources.list").write_text(SOURCE)
    for folder in ("parts", "lists/partial", "cache/archives/partial"):
        (scratch / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": scratch / "sources.list",
        "Dir::Etc::SourceParts": scratch / "parts",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": "20",
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-q", *(f"-o{name}={value}" for name, value in settings.items())]
    for command in (["update"], ["download", "libonnxruntime-dev"]):
        done = subprocess.run([*apt, *command], cwd=scratch, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(('apt-get', *command))} failed:\n{done.stderr.strip()}\n{ELSEWHERE}")
    (package,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, scratch / "files"], check=True)
    return scratch / "files" / "usr" / "include" / "onnxruntime"


if __name__ == "__main__":
    main()
