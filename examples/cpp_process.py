"""Drive the C++ program from Python and compare its answers with Python's own session.

    make cpp
    mlpdeploy export --model asmlp_s -o asmlp_s
    python examples/cpp_process.py asmlp_s photo.jpg ...

Each picture goes to `mlpdeploy-infer serve --stdin` as a frame, four bytes with the length and the file, and comes back
as a line of JSON. The exit code is 1 where the classes differ.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

from mlpdeploy.images import sample_photographs
from mlpdeploy.prediction import predict

PROGRAM = Path(__file__).resolve().parent.parent / "build" / "cpp-release" / "mlpdeploy-infer"


def send(pipe: IO[bytes], paths: list[Path]) -> None:
    """Write every picture as a frame, and close the stream: the program answers the rest and ends."""
    with pipe:
        for path in paths:
            data = path.read_bytes()
            pipe.write(struct.pack("<I", len(data)) + data)


def main() -> int:
    """Classify the pictures twice and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", type=Path, nargs="*", help="[default: the two photographs of scikit-learn]")
    parser.add_argument("--program", type=Path, default=PROGRAM)
    options = parser.parse_args()
    paths = options.images or sample_photographs()
    command = [options.program, "serve", options.artifact, "--stdin", "--top", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        # Frames go in while answers come out: both pipes are short.
        sender = threading.Thread(target=send, args=(process.stdin, paths))
        sender.start()
        answers = [json.loads(line) for line in process.stdout]
        sender.join()
    if process.returncode:
        return process.returncode
    differing = 0
    for path, answer, wanted in zip(paths, answers, predict(options.artifact, paths, top=3), strict=True):
        got = [score["index"] for score in answer["top"]]
        same = got == [score.index for score in wanted.top]
        differing += not same
        names = ", ".join(f"{score['label']} {100 * score['probability']:.1f} %" for score in answer["top"])
        print(f"{path}: {names}{'' if same else '  <- Python says otherwise'}")
    print(f"{len(paths) - differing} of {len(paths)} equal to Python's session")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
