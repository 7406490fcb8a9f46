"""What a request costs the load generator: its own HTTP client and aiohttp, on the same server, interleaved.

Processor time of the client's thread, which other work on the machine changes little. Needs aiohttp. Run from the root:
    python benchmarks/load_clients.py
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import write_file
from mlpdeploy.env import git_commit, machine
from mlpdeploy.loadgen.http import HttpTarget
from mlpdeploy.loadgen.options import Address, LoadOptions
from mlpdeploy.loadgen.wire import rest_request

RESULT = Path(__file__).parent / "results" / "load_clients.json"
SIZES = {"28 x 28 grey": (1, 1, 28, 28), "224 x 224 RGB": (1, 3, 224, 224)}
ROUNDS, SECONDS, CLIENTS = 5, 1.5, 8

SERVER = """
import asyncio
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: 40\\r\\n\\r\\n" + bytes(40)
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.missing, self.head = transport, 0, b""
    def data_received(self, data):
        if self.missing:
            self.missing -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\\r\\n\\r\\n")
            if end < 0:
                return
            length = int(self.head[:end].lower().split(b"\\r\\ncontent-length:")[1].split()[0])
            self.missing, self.head = length - (len(self.head) - end - 4), b""
        if not self.missing:
            self.transport.write(ANSWER)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


async def spend(send: Any, clients: int) -> tuple[float, float]:
    """Return (microseconds of this thread's processor a request, requests a second)."""
    count, end = 0, time.monotonic() + SECONDS

    async def client(slot: int) -> None:
        nonlocal count
        while time.monotonic() < end:
            await send(slot)
            count += 1

    before = time.thread_time()
    await asyncio.gather(*map(client, range(clients)))
    return 1e6 * (time.thread_time() - before) / count, count / SECONDS


async def compare(port: int, shape: tuple[int, ...]) -> dict[str, list[tuple[float, float]]]:
    import aiohttp

    body, head_bytes = rest_request({"input": np.zeros(shape, np.float32)}, ("logits",))
    headers = {"Inference-Header-Content-Length": str(head_bytes), "Content-Type": "application/octet-stream"}
    options = LoadOptions()
    target = HttpTarget(Address("http", "127.0.0.1", port, False), options)
    await target.connect(CLIENTS)
    text = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{text}\r\n".encode() + body
    found: dict[str, list[tuple[float, float]]] = {"mlpdeploy": [], "aiohttp": []}
    async with aiohttp.ClientSession() as session:

        async def other(slot: int) -> None:
            async with session.post(f"http://127.0.0.1:{port}/x", data=body, headers=headers) as answer:
                await answer.read()

        for _ in range(ROUNDS):
            found["mlpdeploy"].append(await spend(lambda slot: target.send(slot, request, options.timeout_s), CLIENTS))
            found["aiohttp"].append(await spend(other, CLIENTS))
    await target.close()
    return found


def main() -> None:
    import aiohttp

    results: dict[str, Any] = {}
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        try:
            for name, shape in SIZES.items():
                found = asyncio.run(compare(port, shape))
                results[name] = {
                    client: {
                        "cpu_us_per_request": round(statistics.median(cpu for cpu, _ in rounds), 1),
                        "requests_per_s": round(statistics.median(rate for _, rate in rounds), 1),
                    }
                    for client, rounds in found.items()
                }
        finally:
            server.terminate()
    report = {
        "date_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "machine": machine(),
        "aiohttp": aiohttp.__version__,
        "rounds": ROUNDS,
        "clients": CLIENTS,
        "results": results,
    }
    write_file(RESULT, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
