"""What one client may cost: sizes and times beyond which a request is refused."""

from __future__ import annotations

from dataclasses import dataclass

from mlpdeploy.errors import MlpDeployError

MAX_BODY_BYTES = 64 << 20  # of one request, also after decompression: about 100 rows of 224 x 224
MAX_JSON_BYTES = 16 << 20  # of JSON in it; parsing holds the event loop, and numbers as text are slow anyway
MAX_BODIES_BYTES = 1 << 30  # of all requests that are being read or computed
MAX_PICTURE_PIXELS = 32_000_000  # each takes up to 8 bytes while it is decoded
MAX_HEADER_BYTES = 32 << 10
MAX_CONNECTIONS = 1024
MAX_RPCS = 512  # gRPC calls and streams at once; one more is refused
MAX_READS = 8  # of them, calls whose message is being read; the others wait
MAX_STREAMS = 16  # gRPC streams at once
MAX_DIMENSIONS = 16
MAX_REGIONS = 256  # of shared memory, each of which is an open file
HEADER_SECONDS = 10.0  # from the first byte (or the connection) to the end of the headers
KEEP_ALIVE_SECONDS = 75.0
BODY_SECONDS = 20.0  # and in addition a second for so many bytes:
BODY_BYTES_PER_SECOND = 64 << 10
READ_SECONDS = 5.0  # for a gRPC message while others wait to be read
SEND_SECONDS = 30.0  # in which a client has to read so many bytes of an answer:
SEND_BYTES = 1 << 20


class RefusedError(MlpDeployError):
    """A request that HTTP itself has a status for, such as 413."""

    def __init__(self, status: int, got: str, wanted: str = "", fix: str = "") -> None:
        super().__init__(got, wanted, fix)
        self.status = status


def body_seconds(size: int) -> float:
    """Return how long a body of `size` bytes may take."""
    return BODY_SECONDS + size / BODY_BYTES_PER_SECOND


def too_large(what: str, limit: int) -> RefusedError:
    """Return the refusal of something that has more than `limit` bytes."""
    return RefusedError(413, f"{what} is too large", f"at most {limit} bytes", "send fewer rows at once")


@dataclass
class Budget:
    """Bytes that all request bodies together may take."""

    limit: int = MAX_BODIES_BYTES
    used: int = 0

    def take(self, size: int) -> bool:
        """Return whether there was room for `size` bytes, which are taken then; give them back with `give`."""
        if self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give taken bytes back."""
        self.used -= size
