"""Where the native sources are."""

from __future__ import annotations

from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
