"""tritonclient's four clients; import it behind a skip where tritonclient may be missing."""

from __future__ import annotations

import inspect
from typing import Any

import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from running import Running

CLIENTS = {
    "http": tritonclient.http,
    "grpc": tritonclient.grpc,
    "http.aio": tritonclient.http.aio,
    "grpc.aio": tritonclient.grpc.aio,
}


def url_of(client: str, server: Running) -> str:
    return server.grpc if client.startswith("grpc") else f"127.0.0.1:{server.http_port}"


async def call(client: str, server: Running, name: str, *arguments: Any, **options: Any) -> Any:
    """Return what one call of a new client gives."""
    made = CLIENTS[client].InferenceServerClient(url_of(client, server))
    try:
        result = getattr(made, name)(*arguments, **options)
        return await result if inspect.isawaitable(result) else result
    finally:
        closed = made.close()
        if inspect.isawaitable(closed):
            await closed
