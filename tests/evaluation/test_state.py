"""The rows on disk: kept, cut where they are not whole, refused where they are of something else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.errors import UsageError
from mlpdeploy.evaluation.state import CandidateIdentity, DataIdentity, open_state

DATA = DataIdentity("photos", "d" * 64, 6, 3)
MODEL = CandidateIdentity("asmlp", "onnxruntime", "cpu", "a" * 64, {"onnxruntime": "1.0"})
LOGITS = np.arange(18, dtype=np.float32).reshape(6, 3)


def fill(folder: Path, count: int) -> None:
    with open_state(folder, DATA) as state:
        state.rows(MODEL).append(LOGITS[:count], np.ones(count, bool), 0.5)


def test_rows_come_back(tmp_path: Path) -> None:
    fill(tmp_path / "s", 4)
    with open_state(tmp_path / "s", DATA) as state:
        rows = state.rows(MODEL)
        assert len(rows) == 4
        rows.append(LOGITS[5:], np.array([False, True]), 0.25)
        logits, readable = rows.read(2, 100)
        assert readable.tolist() == [True, True, False, True]
        np.testing.assert_array_equal(logits[readable], LOGITS[[2, 3, 5]])
        assert rows.images_per_s() == pytest.approx(5 / 0.75)


@pytest.mark.parametrize("cut", [1, 5, 16])
def test_a_half_written_row_is_dropped(tmp_path: Path, cut: int) -> None:
    fill(tmp_path / "s", 4)
    path = tmp_path / "s" / "0.rows"
    path.write_bytes(path.read_bytes()[:-cut])
    with open_state(tmp_path / "s", DATA) as state:
        rows = state.rows(MODEL)
        assert len(rows) == 3
        rows.append(LOGITS[3:4], np.ones(1, bool), 0.1)
        np.testing.assert_array_equal(rows.read(0, 4)[0], LOGITS[:4])


def test_rows_of_zeros_are_dropped(tmp_path: Path) -> None:
    fill(tmp_path / "s", 4)
    with (tmp_path / "s" / "0.rows").open("ab") as file:
        file.write(bytes(40))
    with open_state(tmp_path / "s", DATA) as state:
        assert len(state.rows(MODEL)) == 4


@pytest.mark.parametrize("change", [{"sha256": "e" * 64}, {"images": 7}, {"classes": 4}])
def test_other_data_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fill(tmp_path / "s", 4)
    with (
        pytest.raises(UsageError, match="has results on other data: 6 images of photos"),
        open_state(tmp_path / "s", dataclasses.replace(DATA, **change)),
    ):
        pass


@pytest.mark.parametrize(
    "change", [{"manifest_sha256": "b" * 64}, {"device": "cuda"}, {"versions": {"onnxruntime": "2.0"}}]
)
def test_another_model_of_the_same_name_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    fill(tmp_path / "s", 4)
    with (
        open_state(tmp_path / "s", DATA) as state,
        pytest.raises(UsageError, match=f"results of asmlp on onnxruntime with {next(iter(change))}"),
    ):
        state.rows(dataclasses.replace(MODEL, **change))


def test_more_candidates_have_rows_of_their_own(tmp_path: Path) -> None:
    fill(tmp_path / "s", 4)
    with open_state(tmp_path / "s", DATA) as state:
        assert len(state.rows(dataclasses.replace(MODEL, backend="torch"))) == 0
    with open_state(tmp_path / "s", DATA) as state:
        assert len(state.rows(MODEL)) == 4


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="holds something else"), open_state(tmp_path, DATA):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"), open_state(tmp_path / "thesis.txt", DATA):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "other", "version": 1}', '{"format": "x"}'])
def test_a_damaged_state_is_refused(tmp_path: Path, text: str) -> None:
    fill(tmp_path / "s", 4)
    (tmp_path / "s" / "state.json").write_text(text)
    with pytest.raises(UsageError, match="cannot be used"), open_state(tmp_path / "s", DATA):
        pass


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    with (
        open_state(tmp_path / "s", DATA),
        pytest.raises(UsageError, match="another process is at work"),
        open_state(tmp_path / "s", DATA),
    ):
        pass
    fill(tmp_path / "s", 1)


def test_without_a_folder_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_state(None, DATA) as state:
        state.rows(MODEL).append(LOGITS, np.ones(6, bool), 1.0)
        assert any(tmp_path.iterdir())
    assert not any(tmp_path.iterdir())
