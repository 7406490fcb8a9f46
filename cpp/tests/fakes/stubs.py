"""Write a class with every virtual method of some of TensorRT's classes: python stubs.py INCLUDE OUT

Which methods there are differs by version; a fake overrides those that the library uses, and a call of any other one
ends the program with its name.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# Class -> whether it is in the namespace apiv.
CLASSES = {"VRuntime": True, "VCudaEngine": True, "VExecutionContext": True, "IPluginRegistry": False}
METHOD = re.compile(
    r"virtual\s+(?P<result>[^;{}()]*?[\s&*])(?P<name>\w+)\s*(?P<arguments>\([^;{}]*?\))\s*(?P<rest>(?:const\s*)?(?:noexcept\s*)?)=\s*0\s*;"
)


def body_of(text: str, name: str) -> str:
    """Return what stands between the braces of a class."""
    start = re.search(rf"class {name}\b[^;{{]*{{", text)
    if start is None:
        sys.exit(f"no class {name} in the headers")
    return text[start.end() : text.index("\n};", start.end())]


def stub_of(text: str, name: str, internal: bool) -> str:
    body = re.sub(r"#if ENABLE_FEATURE.*?#endif", "", body_of(text, name), flags=re.S)
    methods = [
        f"  {' '.join(m['result'].split())} {m['name']}{' '.join(m['arguments'].split())} {m['rest']}override "
        f'{{ unexpected("{name}::{m["name"]}"); }}'
        for m in METHOD.finditer(body)
    ]
    return (
        f"class Stub{name} : public {'apiv::' if internal else ''}{name} {{\n public:\n" + "\n".join(methods) + "\n};\n"
    )


def main(include: Path, out: Path) -> None:
    headers = "\n".join(path.read_text(errors="replace") for path in sorted(include.glob("NvInferR*.h")))
    headers += (include / "NvInferImpl.h").read_text(errors="replace")
    headers = re.sub(r"//[^\n]*|/\*.*?\*/", "", headers, flags=re.S)
    headers = re.sub(r"TRT_DEPRECATED\w*(?:\([^)]*\))?|TRT_NODISCARD", "", headers)
    stubs = "\n".join(stub_of(headers, name, internal) for name, internal in CLASSES.items())
    out.write_text(
        "// Written by stubs.py from TensorRT's headers.\n#pragma once\n\n#include <NvInferRuntime.h>\n\n"
        "[[noreturn]] void unexpected(const char* method) noexcept;\n\n"
        f"namespace nvinfer1 {{\n\n{stubs}\n}}  // namespace nvinfer1\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
