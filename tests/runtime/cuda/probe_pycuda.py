"""The provider `pycuda` with the real package on a simulated driver; prints what it saw as JSON."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np

from mlpdeploy.runtime.cuda.interface import LEGACY_STREAM, CudaError
from mlpdeploy.runtime.cuda.pycuda import Provider


def copies(cuda: Provider) -> dict[str, object]:
    """There and back through everything that copies, and the time between two events."""
    stream, first, second = cuda.create_stream(), cuda.create_event(), cuda.create_event()
    host, back = cuda.allocate_pinned(64), cuda.allocate_pinned(64)
    here, there = cuda.allocate(64), cuda.allocate(64)
    host[:] = np.arange(64)
    cuda.record(first, stream)
    cuda.copy_in(here, host, stream)
    cuda.copy_within(there, here, 64, stream)
    cuda.clear(there, 4, stream)
    cuda.copy_out(back, there, stream)
    cuda.record(second, stream)
    late = back.tolist()  # the simulated GPU works when somebody waits
    cuda.synchronize(stream)
    seen = {
        "handle": cuda.handle(stream) != 0,
        "late": late == back.tolist(),
        "back": back.tolist(),
        "elapsed_ms": cuda.elapsed_ms(first, second),
        "pinned": [str(host.dtype), list(host.shape)],
    }
    for producer in (LEGACY_STREAM, cuda.handle(stream)):
        cuda.wait_for_producer(stream, producer)
    cuda.synchronize(stream)
    for pointer in (here, there):
        cuda.free(pointer)
    for array in (host, back):
        cuda.free_pinned(array)
    for event in (first, second):
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    return seen


def in_another_thread(cuda: Provider) -> list[str]:
    """Everything again in a thread that did not make the context, and an allocation without it."""
    failures: list[str] = []

    def work() -> None:
        try:
            with cuda.current():
                copies(cuda)
        except Exception as error:  # noqa: BLE001 - the parent asserts on all of them
            failures.append(repr(error))
        try:
            cuda.allocate(64)
        except CudaError:
            failures.append("no context")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return failures


def main() -> None:
    cuda = Provider(0)
    with cuda.current():
        seen = copies(cuda)
        own = cuda.allocate(64)
        seen["foreign"] = [cuda.is_foreign(own), *map(cuda.is_foreign, range(0x7F0000000001, 0x7F0000000004))]
        cuda.free(own)
    seen["thread"] = in_another_thread(cuda)
    with cuda.current():
        try:
            cuda.copy_in(cuda.allocate(8), np.zeros((4, 4), np.uint8)[:, ::2], cuda.create_stream())
        except Exception as error:  # noqa: BLE001 - whichever it is
            seen["strided"] = type(error).__name__
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
