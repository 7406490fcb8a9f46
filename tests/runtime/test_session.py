"""The Session protocol, the same tests for every backend."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from cpu_runs import TOLERANCE, images, reference
from tiny import tiny_asmlp

from mlpdeploy.export.export import export_model
from mlpdeploy.runtime.loading import load
from mlpdeploy.runtime.session import Session, stream_runs


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 11])
def test_any_batch_equals_the_reference(session: Session, rows: int) -> None:
    logits = session.run({"input": images(rows)})["logits"]
    assert (logits.shape, logits.dtype) == ((rows, 7), np.float32)
    np.testing.assert_allclose(logits, reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_streams_give_the_bits_of_one_image_alone(exported: Path, threads: int) -> None:
    """Row i of any batch, on any number of threads, is computed like row i alone."""
    with load(exported, threads=1) as one:
        alone = np.concatenate([one.run({"input": images(13)[row : row + 1]})["logits"] for row in range(13)])
    with load(exported, threads=threads) as session:
        for rows in (1, 2, 3, 5, 6, 8, 10, 13):
            into = np.empty((rows, 7), np.float32)
            np.testing.assert_array_equal(session.run({"input": images(13)[:rows]})["logits"], alone[:rows])
            session.run({"input": images(13)[:rows]}, {"logits": into})
            np.testing.assert_array_equal(into, alone[:rows])


@pytest.mark.parametrize("threads", [2, 3, 4, 16])
@pytest.mark.parametrize("share", [1, 2, 3, 5, 8])
def test_streams_have_equal_shares_and_end_together(threads: int, share: int) -> None:
    runs = stream_runs(threads * share, threads)
    assert runs[0][0] == 0 and runs[-1][1] == threads * share
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(runs))
    work = [0] * threads
    sizes = [stop - start for start, stop in runs]
    for size in sizes:  # each run goes to whoever is free first
        work[work.index(min(work))] += size
    assert work == [share] * threads
    assert max(sizes) == min(2, share) and sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_results_go_to_given_arrays(session: Session, rows: int) -> None:
    into = np.full((rows, 7), np.nan, np.float32)
    result = session.run({"input": images(rows)}, {"logits": into})
    assert result["logits"] is into
    np.testing.assert_allclose(into, reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_a_fixed_batch_takes_any_number_of_rows(tmp_path: Path, rows: int) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", batch=3, verify=False)
    with load(tmp_path / "out") as session:
        assert session.max_batch == 3
        into = np.empty((rows, 7), np.float32)
        for result in (session.run({"input": images(rows)}), session.run({"input": images(rows)}, {"logits": into})):
            np.testing.assert_allclose(result["logits"], reference(images(rows)), atol=TOLERANCE)


@pytest.mark.parametrize("max_batch", [2, 8])
def test_a_fixed_batch_stays_whatever_max_batch_is(tmp_path: Path, max_batch: int) -> None:
    export_model(tiny_asmlp(), tmp_path / "out", batch=3, verify=False)
    with load(tmp_path / "out", max_batch=max_batch) as session:
        assert session.max_batch == 3
        np.testing.assert_allclose(session.run({"input": images(7)})["logits"], reference(images(7)), atol=TOLERANCE)
