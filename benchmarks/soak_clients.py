"""The clients of soak.py: what they ask, and what they must be answered."""

from __future__ import annotations

import dataclasses
import http.client
import io
import json
import os
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
from PIL import Image

from mlpdeploy.classification import top_classes
from mlpdeploy.images import image_from_bytes, preprocess
from mlpdeploy.runtime.session import Session
from mlpdeploy.serving.protocol.messages import SERVICE, message_classes

ROWS = 64  # of known answers
MOST_ROWS = 4
TIMEOUT_SECONDS = 10.0
GRACE_SECONDS = 2.0  # beyond the deadline, for the way back on a busy machine
TOLERANCE = 1e-3
KINDS = {"rest": 10, "grpc": 10, "jpeg": 5, "hang_up": 1, "cancel": 1, "nonsense": 1, "oversize": 1}
IN_TROUBLE = {503, 504, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclasses.dataclass(frozen=True)
class Model:
    """What is asked of one model, and what it must answer.

    Attributes:
        rows: (ROWS, ...) float32.
        expected: (ROWS, classes) float32.
        pictures: of each a JPEG's bytes, its best class and the probability of that.
        rate: requests per second.
    """

    name: str
    input: str
    rows: np.ndarray
    expected: np.ndarray
    pictures: list[tuple[bytes, int, float]]
    rate: float


def known_answers(name: str, session: Session, load_share: float) -> Model:
    """Return the rows of a model with the session's answers to them."""
    preprocessing = session.manifest.preprocessing
    height, width = preprocessing.height_width
    rows = next(iter(session.random_feeds(ROWS, height_width=(height, width)).values()))
    started = time.perf_counter()
    expected = np.concatenate([_logits(session, rows[index : index + 1]) for index in range(ROWS)])
    seconds = (time.perf_counter() - started) / ROWS
    apart = np.abs(expected[:, None] - expected[None]).max(-1) + np.eye(ROWS) * 1e9
    assert apart.min() > 4 * TOLERANCE, f"{name}: rows whose answers cannot be told apart"
    pictures = []
    generator = np.random.default_rng(1)
    for _ in range(8):
        file = io.BytesIO()
        coarse = Image.fromarray(generator.integers(0, 256, (7, 9, 3), np.uint8))
        coarse.resize((2 * width, 2 * height)).save(file, "JPEG")
        logits = _logits(session, preprocess(image_from_bytes(file.getvalue()), preprocessing)[None])
        best = top_classes(logits, session.manifest.labels, 1)[0][0]
        pictures.append((file.getvalue(), best.index, best.probability))
    cost = 0.004 + seconds * (os.cpu_count() or 1)  # processor seconds of a request, roughly
    return Model(name, session.inputs[0].name, rows, expected, pictures, load_share / cost)


def _logits(session: Session, x: np.ndarray) -> np.ndarray:
    return np.array(session.run({session.inputs[0].name: x})[session.outputs[0].name])


class Tally:
    """What all clients have seen, counted under a lock."""

    def __init__(self, trouble_allowed: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.slowest = 0.0
        self._trouble_allowed = trouble_allowed
        self._lock = threading.Lock()

    def note(self, kind: str, status: Any, seconds: float, fault: str = "") -> None:
        """Count one request that has ended; `fault` says what was wrong with its answer."""
        if not fault and kind in ("rest", "grpc", "jpeg") and status not in (200, grpc.StatusCode.OK):
            fault = "" if self._trouble_allowed and status in IN_TROUBLE else f"{kind}: answered with {status}"
        if not fault and seconds > TIMEOUT_SECONDS + GRACE_SECONDS:
            fault = f"{kind}: {seconds:.1f} s, after its deadline"
        with self._lock:
            self.counts[f"{kind} {getattr(status, 'name', status)}"] += 1
            self.slowest = max(self.slowest, seconds)
            if fault:
                self.faults.append(fault)


class Client(threading.Thread):
    """Asks for one model, one request at a time."""

    def __init__(self, number: int, model: Model, http_port: int, channel: grpc.Channel, pause: float, tally: Tally,
                 stop: threading.Event) -> None:  # fmt: skip
        super().__init__(name=f"client-{number}", daemon=True)
        self._random = random.Random(number)
        self._model, self._port, self._pause, self._tally, self._stop_it = model, http_port, pause, tally, stop
        self._infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._connection: http.client.HTTPConnection | None = None
        self._asked = 0

    def run(self) -> None:
        """Ask until told to stop."""
        calls: dict[str, Callable[[], tuple[Any, str]]] = {
            "rest": self._rest, "grpc": self._grpc, "jpeg": self._jpeg, "hang_up": self._hang_up,
            "cancel": self._cancel, "nonsense": self._nonsense, "oversize": self._oversize,
        }  # fmt: skip
        while not self._stop_it.wait(self._random.expovariate(1 / self._pause)):
            kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
            self._asked += 1
            started = time.perf_counter()
            try:
                status, fault = calls[kind]()
            except Exception as error:  # noqa: BLE001 - whatever it is, the request has no answer
                status, fault = "lost", f"{kind}: {type(error).__name__}: {error}"
                self._connection = None
            self._tally.note(kind, status, time.perf_counter() - started, fault)

    def _pick(self) -> tuple[list[int], np.ndarray, str]:
        """Return (rows, their tensor, an id that no other request has)."""
        picked = self._random.choices(range(ROWS), k=self._random.randint(1, MOST_ROWS))
        return picked, self._model.rows[picked], f"{self.name}-{self._asked}-{'-'.join(map(str, picked))}"

    def _check(self, picked: list[int], wanted: str, found: str, data: bytes) -> str:
        expected = self._model.expected[picked]
        if found != wanted:
            return f"request {wanted} got the answer to {found}"
        if len(data) != expected.nbytes:
            return f"request {wanted} got {len(data)} bytes"
        error = float(np.abs(np.frombuffer(data, np.float32).reshape(expected.shape) - expected).max())
        return "" if error < TOLERANCE else f"request {wanted} is off by {error:.3g}"

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, http.client.HTTPResponse]:
        """Return (status, body, response) on the one connection, on which nothing may be left over."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=2 * TIMEOUT_SECONDS)
        elif self._connection.sock and select.select([self._connection.sock], [], [], 0)[0]:
            if self._connection.sock.recv(1):
                raise AssertionError("an answer that was not asked for")
            self._connection.close()  # the server has let an idle connection go
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        return response.status, response.read(), response

    def _binary(self, x: np.ndarray, request_id: str) -> tuple[bytes, dict[str, str]]:
        tensor = {"name": self._model.input, "shape": list(x.shape), "datatype": "FP32"}
        tensor["parameters"] = {"binary_data_size": x.nbytes}
        timeout = {"timeout": round(1e6 * TIMEOUT_SECONDS), "binary_data_output": True}
        head = json.dumps({"id": request_id, "inputs": [tensor], "parameters": timeout}).encode()
        return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}

    def _rest(self) -> tuple[Any, str]:
        picked, x, request_id = self._pick()
        status, body, response = self._post(f"/v2/models/{self._model.name}/infer", *self._binary(x, request_id))
        if status != 200:
            return status, ""
        length = int(response.headers["Inference-Header-Content-Length"])
        return status, self._check(picked, request_id, json.loads(body[:length]).get("id", ""), body[length:])

    def _message(self, x: np.ndarray, request_id: str) -> bytes:
        message = message_classes()["ModelInferRequest"](
            model_name=self._model.name, id=request_id, raw_input_contents=[x.tobytes()]
        )
        message.inputs.add(name=self._model.input, datatype="FP32", shape=x.shape)
        return bytes(message.SerializeToString())

    def _grpc(self) -> tuple[Any, str]:
        picked, x, request_id = self._pick()
        try:
            data = self._infer(self._message(x, request_id), timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return error.code(), ""
        answer = message_classes()["ModelInferResponse"].FromString(data)
        return grpc.StatusCode.OK, self._check(picked, request_id, answer.id, answer.raw_output_contents[0])

    def _jpeg(self) -> tuple[Any, str]:
        picture, index, probability = self._random.choice(self._model.pictures)
        status, body, _ = self._post(
            f"/v1/classify?model={self._model.name}&top=1", picture, {"Content-Type": "image/jpeg"}
        )
        if status != 200:
            return status, ""
        best = json.loads(body)["classes"][0]
        right = best["index"] == index and abs(best["probability"] - probability) < TOLERANCE
        return status, "" if right else f"a picture of class {index} ({probability:.4f}) is said to be {best}"

    def _hang_up(self) -> tuple[Any, str]:
        """Send a request, and go before the answer comes."""
        body, headers = self._binary(*self._pick()[1:])
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        connection.request("POST", f"/v2/models/{self._model.name}/infer", body, headers)
        connection.close()
        return "gone", ""

    def _cancel(self) -> tuple[Any, str]:
        call = self._infer.future(self._message(*self._pick()[1:]), timeout=TIMEOUT_SECONDS)
        time.sleep(self._random.uniform(0, 0.01))
        call.cancel()
        return "gone", ""

    def _nonsense(self) -> tuple[Any, str]:
        body = self._random.randbytes(self._random.randint(1, 2000))
        headers = self._random.choice([{}, {"Inference-Header-Content-Length": "7"}])
        status, _, _ = self._post(f"/v2/models/{self._model.name}/infer", body, headers)
        return status, "" if status == 400 else f"nonsense was answered with {status}"

    def _oversize(self) -> tuple[Any, str]:
        """Announce more than is taken; the server answers at once and closes."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_SECONDS)
        connection.putrequest("POST", f"/v2/models/{self._model.name}/infer")
        connection.putheader("Content-Length", str(1 << 30))
        connection.endheaders(b"{")
        status = connection.getresponse().status
        connection.close()
        return status, "" if status == 413 else f"1 GiB was answered with {status}"
