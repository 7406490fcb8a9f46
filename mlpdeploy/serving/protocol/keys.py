"""API keys: read from a file, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path

from mlpdeploy.errors import UsageError
from mlpdeploy.serving.protocol.limits import RefusedError

MIN_CHARACTERS = 8


class Keys:
    """The keys that open this server; none lets everybody in."""

    def __init__(self, keys: tuple[bytes, ...] = ()) -> None:
        self._keys = keys

    def check_if_needed(self, headers: Mapping[str, str]) -> None:
        """Check the headers of HTTP, or the metadata of gRPC, by lower-case name; see `check`."""
        if self._keys:
            self.check(headers.get("authorization"), headers.get("x-api-key"))

    def check(self, authorization: str | None, api_key: str | None) -> None:
        """Raise RefusedError unless `Authorization: Bearer KEY` or `X-API-Key: KEY` holds a key."""
        scheme, _, token = (authorization or "").partition(" ")
        shown = [(api_key or "").encode(), token.strip().encode() if scheme.lower() == "bearer" else b""]
        # Every pair is compared, whatever the others gave: the time tells nothing.
        found = [hmac.compare_digest(key, candidate) for key in self._keys for candidate in shown]
        if not any(found):
            raise RefusedError(401, "no valid API key", "Authorization: Bearer KEY, or X-API-Key: KEY")


def read_keys(path: Path | None) -> Keys:
    """Return the keys in a file, one a line; empty lines and those that begin with # are passed over.

    Raises:
        UsageError: the file cannot be read, holds no key, or one that is too short or not ASCII.
    """
    if path is None:
        return Keys()
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"{path} cannot be read ({error})", "a text file with a key a line") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or min(map(len, keys)) < MIN_CHARACTERS:
        raise UsageError(
            f"{path} has {'no key' if not keys else 'a key that is too short'}",
            f"keys of at least {MIN_CHARACTERS} characters, one a line",
            f"make one: openssl rand -hex 32 > {path}",
        )
    if not all(map(str.isascii, keys)):
        raise UsageError(f"{path} has a key with characters that no header holds", "keys of ASCII characters")
    return Keys(tuple(key.encode() for key in keys))
