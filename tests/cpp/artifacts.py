"""Make the folders and pictures that the C++ tests run on: python tests/cpp/artifacts.py FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from tiny import tiny_asmlp, tiny_vip

from mlpdeploy.export.export import export_model
from mlpdeploy.images import sample_photographs


def make(folder: Path) -> None:
    """Export both families, a fixed batch and feature maps of open size, and make the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    export_model(tiny_asmlp(), folder / "asmlp", force=True, verify=False)
    export_model(tiny_vip(), folder / "vip", force=True, verify=False)
    export_model(tiny_asmlp(), folder / "fixed", batch=3, force=True, verify=False)
    features = tiny_asmlp(features=True)
    export_model(features, folder / "features", image_size="dynamic", force=True, verify=False)
    make_pictures(folder)


def make_pictures(folder: Path) -> None:
    """Save the two small pictures."""
    picture = Image.open(sample_photographs()[0]).resize((61, 43))
    picture.save(folder / "small.jpg")
    picture.save(folder / "small.png")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
