"""Pictures are prepared by Pillow here."""

from __future__ import annotations

import pytest

from mlpdeploy.plugins import cpu_pictures


@pytest.fixture(autouse=True)
def by_pillow(monkeypatch):
    """Whether or not there are CPU kernels; tests/plugins/test_cpu_pictures.py compares theirs with these."""
    monkeypatch.setattr(cpu_pictures, "_function", lambda: None)
