"""What a machine says of itself."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlpdeploy import env

V2 = "0::{}\n"
V1 = "9:name=systemd:/\n4:memory:{0}\n2:cpu,cpuacct:{0}\n0::/\n"


@pytest.mark.parametrize(
    ("told", "path", "files", "wanted"),
    [
        (V2, "/", {"cpu.max": "max 100000"}, math.inf),
        (V2, "/", {"cpu.max": "250000 100000"}, 2.5),
        (V2, "/a/b", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (V2, "/", {}, math.inf),
        (V1, "/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, math.inf),
        (V1, "/a", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 0.5),
        # In a container that sees the path from outside.
        (V1, "/docker/1f", {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (V2, "/", {"cpu.max": "what"}, math.inf),
    ],
)
def test_limits_of_containers(tmp_path: Path, told: str, path: str, files: dict[str, str], wanted: float) -> None:
    for name, text in {
        "proc/self/cgroup": told.format(path),
        **{f"sys/fs/cgroup/{k}": v for k, v in files.items()},
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert env._processors_allowed(tmp_path) == wanted


def test_no_control_groups(tmp_path: Path) -> None:
    assert env._processors_allowed(tmp_path) == math.inf


@pytest.mark.parametrize(("allowed", "wanted"), [(math.inf, 6), (64.0, 6), (2.5, 2), (0.5, 1)])
def test_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch, allowed: float, wanted: int) -> None:
    monkeypatch.setattr(env.os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setattr(env, "_processors_allowed", lambda: allowed)
    assert env.cpu_count() == wanted
