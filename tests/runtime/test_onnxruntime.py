"""What is ONNX Runtime's own on the CPU: its threads, and that it reports nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cpu_runs import images

from mlpdeploy.runtime.loading import load


@pytest.mark.parametrize("threads", [1, 3])
def test_onnxruntime_computes_with_as_many_threads_as_it_is_told(exported: Path, threads: int) -> None:
    with load(exported, "onnxruntime", "cpu", threads=threads) as session:
        session.run({"input": images(4)})
        assert session._session.get_session_options().intra_op_num_threads == threads  # type: ignore[attr-defined]
        if threads > 1:
            streams = session._streams.session  # type: ignore[attr-defined]
            assert streams.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize("share", [False, True])
def test_threads_stop_looking_for_work_where_the_processors_are_shared(exported: Path, share: bool) -> None:
    with load(exported, "onnxruntime", "cpu", share_processors=share) as session:
        options = session._session.get_session_options()  # type: ignore[attr-defined]
        entry = "session.force_spinning_stop"
        assert (share and options.get_session_config_entry(entry)) == ("1" if share else False)


def test_onnxruntime_reports_nothing_to_anybody(exported: Path, tmp_path: Path) -> None:
    code = "import mlpdeploy, sys; s = mlpdeploy.load(sys.argv[1], 'onnxruntime'); s.run(s.random_feeds(1))"
    environment = {
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLPDEPLOY_CACHE": str(tmp_path / "c"),
        "TMPDIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", code, str(exported)], check=True, env=environment)
    assert list(tmp_path.iterdir()) == []
