"""How the tests are shared out among processes: file by file, and folders whose tests wait for one compiler as a whole.

Not by xdist's groups: pytest 9.2 no longer reads the name that xdist 3.8 appends them to, and every test went to
whichever process was free, so that both compiled and exported everything.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = {"cpp", "plugins"}  # folders whose tests share what is compiled for them


class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # xdist ships no types
    """Keeps the tests of a file, or of a folder of TOGETHER, in one process; the largest first."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        folder = path.removeprefix("tests/").partition("/")[0]
        return folder if folder in TOGETHER else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Take the place of `--dist loadfile`; other ways to share out stay what they are."""
    return ByFile(config, log) if config.getvalue("dist") == "loadfile" else None
