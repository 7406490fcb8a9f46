"""Finding pictures in folders and among the samples that packages ship."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from picture_files import pixels

from mlpdeploy import images
from mlpdeploy.errors import MissingDependencyError, UsageError
from mlpdeploy.images import find_images, sample_photographs


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [folder / name for name in names]


def test_pictures_of_other_kinds_are_told(tmp_path):
    touch(tmp_path, "d/a.png", "d/b.AVIF", "d/sub/c.heic", "d/sub/d.avif", "d/notes.txt", "d/._b.avif")
    with pytest.warns(UserWarning, match=r"that are not read: 2 \.avif, 1 \.heic"):
        assert find_images(tmp_path / "d") == [tmp_path / "d" / "a.png"]


def test_find_images_takes_files_as_given_and_expands_folders(tmp_path):
    touch(tmp_path, "d/b.JPG", "d/a.png", "d/sub/c.tiff", "d/notes.txt", "d/._a.png", "d/.hidden/x.jpg", "d/model.onnx")
    (odd,) = touch(tmp_path, "z.unknown")
    expected = [tmp_path / "d" / name for name in ("a.png", "b.JPG", "sub/c.tiff")]
    assert find_images([odd, tmp_path / "d"]) == [odd, *expected]
    assert find_images([str(tmp_path / "d"), odd, odd]) == [*expected, odd, odd]
    assert find_images(str(tmp_path / "d")) == expected


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"])
def test_find_images_knows_the_suffixes(tmp_path, suffix):
    expected = touch(tmp_path, f"a{suffix}")
    assert find_images([tmp_path]) == expected


def test_find_images_follows_no_circle(tmp_path):
    touch(tmp_path, "d/a.png")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    assert find_images([tmp_path]) == [tmp_path / "d" / "a.png"]


def test_find_images_refuses(tmp_path):
    touch(tmp_path, "texts/a.txt")
    for paths, words in [
        ([tmp_path / "nowhere.jpg"], "nowhere.jpg does not exist"),
        ([tmp_path / "texts"], "texts holds no image"),
        ([], "no image is given"),
        ([tmp_path / ("x" * 300)], r"x cannot be read \(File name too long\)"),
        (["a\0b.jpg"], "does not exist"),
    ]:
        with pytest.raises(UsageError, match=words):
            find_images(paths)


def test_sample_photographs():
    # Not pytest.importorskip: it would import scikit-learn, which takes seconds.
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed")
    china, flower = sample_photographs()
    for path in (china, flower):
        assert pixels(path).shape == (427, 640, 3)


def test_sample_photographs_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(images.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install scikit-learn"):
        sample_photographs()


def test_importing_is_cheap():
    program = (
        "import sys; from mlpdeploy.images import sample_photographs\n"
        "try: sample_photographs()\n"
        "except Exception: pass\n"
        "print([name for name in ('PIL', 'sklearn', 'torch', 'onnxruntime') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
