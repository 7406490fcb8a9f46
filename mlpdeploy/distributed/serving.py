"""Models on Ray Serve, for the server of this process: it has the protocols, the replicas compute."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.distributed.cluster import cluster, on_gpu, ray_module, threads_for
from mlpdeploy.distributed.replica import Order, Replica, Reply, error_in, error_of
from mlpdeploy.env import require
from mlpdeploy.errors import InternalError, MlpDeployError, UsageError
from mlpdeploy.manifest import Manifest
from mlpdeploy.runtime.feeds import Arrays, check_feeds
from mlpdeploy.runtime.session import DEFAULT_MAX_BATCH
from mlpdeploy.serving.failures import DeadlineError, QueueFullError, UnavailableError
from mlpdeploy.serving.options import ServeOptions
from mlpdeploy.serving.pool import Workers
from mlpdeploy.serving.stats import ModelStats

START_SECONDS = 600.0
ROOM_SECONDS = 10.0  # beside their draining, that resources of ended replicas are waited for
LOOK_SECONDS = 1.0  # between two looks at how many replicas run
HEALTH_SECONDS = 2.0  # between Ray Serve's checks of a replica
FRESH_SECONDS = 2.0  # so long what a replica said about its queue counts
_ATTEMPTS = 2
_OBJECT_STORE_BYTES = 512 << 20  # of a cluster of our own; what does not fit goes to its disk


@dataclass(frozen=True)
class RayServeOptions:
    """How a model is spread; every replica has a Session of its own.

    Attributes:
        address: of a Ray cluster that this machine belongs to; None starts one here.
        min_replicas, max_replicas: where they differ, Ray Serve follows the number of open requests.
        gpus: of one replica, where the device is a GPU.
        upscale_delay_s, downscale_delay_s: how long there must be too few or too many replicas.
    """

    address: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    gpus: float = 1.0
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 300.0

    def __post_init__(self) -> None:
        """Raise UsageError if a value makes no sense."""
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise UsageError(f"{self.min_replicas} to {self.max_replicas} replicas", "at least 1, and no more at most")
        if not self.gpus > 0:
            raise UsageError(f"gpus is {self.gpus}", "more than 0")
        if self.address is not None and self.address.startswith("ray://"):
            raise UsageError(
                f"Ray address {self.address}", "host:port or auto", "run this on a machine that belongs to the cluster"
            )


class RayModels:
    """Starts models on Ray Serve, while it is open as a context manager.

    Open it before gRPC runs in this process: Ray's first step is to start processes, and gRPC does not like forks.
    """

    def __init__(self, options: RayServeOptions, workers: Workers | None = None) -> None:
        """Keep what is needed.

        Raises:
            MissingDependencyError: a package of the extra is not installed.
        """
        require("fastapi")
        ray_module()
        self.options, self._workers = options, workers or Workers()
        self._stack = contextlib.ExitStack()
        self._ray: Any = None
        # One after the other: each looks at what is free.
        self._starting = asyncio.Lock()

    async def __call__(
        self, name: str, version: str, directory: Path, manifest: Manifest, options: ServeOptions
    ) -> RayModel:
        """Return the model when as many of its replicas as have to are warm.

        Raises:
            UsageError: there is no room for them, or no cluster.
            MlpDeployError: the artifact cannot be loaded.
        """
        order = Order(name, version, str(directory.absolute()), manifest, _replica_options(options), self._workers)
        async with self._starting:
            await asyncio.to_thread(self._check_room, name, order.options)
            model = RayModel(order, options, self.options)
            try:
                await model.start()
            except BaseException:
                await asyncio.shield(model.close())
                raise
            return model

    def __enter__(self) -> RayModels:
        """Connect to the cluster, or start one.

        Raises:
            MlpDeployError: neither works.
        """
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(cluster(self.options.address, _OBJECT_STORE_BYTES))
            from ray import serve

            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            serve.start(proxy_location="Disabled")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Leave the cluster, and end it if it is our own."""
        self._stack.close()

    def _check_room(self, name: str, options: ServeOptions) -> None:
        """Raise UsageError if the cluster has no room: Ray would wait for it without a word.

        An ended replica may still be answering, and what it leaves is told by Ray some time later: both are waited for.
        """
        end = time.monotonic() + options.drain_seconds + ROOM_SECONDS
        for resource, each in _resources(options, self.options).items():
            kind = resource.removeprefix("num_")[:-1].upper()
            wanted = each * self.options.min_replicas
            while (free := self._ray.available_resources().get(kind, 0)) < wanted:
                if time.monotonic() > end or self._ray.cluster_resources().get(kind, 0) < wanted:
                    count = f"{self.options.min_replicas} replicas of {name}"
                    raise UsageError(
                        f"{count} on {wanted:g} {kind}, of which {free:g} are free",
                        fix="lower --replicas or --threads; a new version needs room beside the old one",
                    )
                time.sleep(0.1)


def _replica_options(options: ServeOptions) -> ServeOptions:
    """Return what a replica is told: one worker, and no more threads than it has processors."""
    threads = threads_for(options.backend, options.device, options.threads)
    return dataclasses.replace(options, instances=1, threads=threads, api_key_file=None, tls_cert=None, tls_key=None)


def _resources(options: ServeOptions, spread: RayServeOptions) -> dict[str, float]:
    """Return what Ray sets aside for a replica."""
    found: dict[str, float] = {"num_cpus": options.threads or 1}
    return {**found, "num_gpus": spread.gpus} if on_gpu(options.backend, options.device) else found


class RayModel:
    """A model on Ray Serve, see `serving.interface.Served`: what a client sees is counted here."""

    def __init__(self, order: Order, options: ServeOptions, spread: RayServeOptions) -> None:
        """Prepare; see `start`."""
        self.name, self.version, self.manifest = order.name, order.version, order.manifest
        self.options, self.instances = options, spread.min_replicas
        fixed = order.manifest.inputs[0].shape[0]
        self.max_batch = fixed if isinstance(fixed, int) else options.max_batch or DEFAULT_MAX_BATCH
        self.asked = 0
        self.application = f"mlpdeploy-{order.name}-{order.version}-{uuid.uuid4().hex[:8]}"
        self._order, self._spread = order, spread
        self._own = ModelStats()
        self._replicas: dict[str, tuple[float, ModelStats]] = {}  # when it spoke last, and what it had counted
        self._open: dict[asyncio.Task[Arrays], int] = {}  # -> rows
        self._running = 0
        self._closing = False
        self._drained = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._infer: Any = None

    async def start(self) -> None:
        """Start the replicas, and wait for them.

        Raises:
            MlpDeployError: they do not come up.
        """
        self._infer = (await asyncio.to_thread(self._deploy)).infer
        end = time.monotonic() + START_SECONDS
        while True:
            state = await asyncio.to_thread(self._look)
            if state.status == "RUNNING":
                break
            text = "; ".join([state.message, *(one.message for one in state.deployments.values())])
            if (error := error_in(text)) is not None:
                raise error
            if state.status in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > end:
                raise UnavailableError(
                    f"model {self.name} does not start on Ray Serve ({state.status}: {text[-2000:]})"
                )
            await asyncio.sleep(0.1)
        self._looking = asyncio.create_task(self._keep_looking())

    def _deploy(self) -> Any:
        """Ask Ray Serve for the replicas and return the handle."""
        from ray import serve

        options, spread = self._order.options, self._spread
        count: dict[str, Any] = {"num_replicas": spread.min_replicas}
        if spread.max_replicas > spread.min_replicas:
            count = {
                "autoscaling_config": {
                    "min_replicas": spread.min_replicas,
                    "max_replicas": spread.max_replicas,
                    "target_ongoing_requests": self.max_batch,
                    "upscale_delay_s": spread.upscale_delay_s,
                    "downscale_delay_s": spread.downscale_delay_s,
                }
            }
        deployment: Any = serve.deployment(
            name="model",
            # A replica's own queue is what refuses: it counts rows. Ray Serve's is for when no replica is there.
            max_ongoing_requests=options.queue_limit + 2 * self.max_batch,
            max_queued_requests=options.queue_limit,
            ray_actor_options=_resources(options, spread),
            graceful_shutdown_timeout_s=options.drain_seconds,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=HEALTH_SECONDS,
            max_constructor_retry_count=1,
            logging_config={"log_level": "WARNING", "enable_access_log": False},
            **count,
        )
        target = serve.RunTarget(deployment(Replica).bind(self._order), name=self.application, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        return handle

    def _look(self) -> Any:
        """Return Ray Serve's state of the application, and note how many replicas run."""
        from ray import serve

        state: Any = serve.status().applications[self.application]
        self._running = sum(one.replica_states.get("RUNNING", 0) for one in state.deployments.values())
        return state

    async def _keep_looking(self) -> None:
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await asyncio.to_thread(self._look)
            except (RayError, RayServeException, KeyError):  # the cluster is gone, or the application was deleted
                self._running = 0

    @property
    def ready(self) -> bool:
        """Whether a replica runs and requests are taken."""
        return self._running > 0 and not self._closing

    @property
    def stats(self) -> ModelStats:
        """Requests, rows and failures as clients saw them; the rest as the replicas counted it, dead ones too."""
        own, told = self._own, [stats for _, stats in self._replicas.values()]
        now, open_rows = time.monotonic(), sum(self._open.values())
        queued = sum(stats.queued_rows for at, stats in self._replicas.values() if now - at < FRESH_SECONDS)
        own.queued_rows = min(queued, open_rows)
        own.rows_in_flight = open_rows - own.queued_rows
        own.batches = sum((stats.batches for stats in told), Counter())
        own.queue_seconds = sum(stats.queue_seconds for stats in told)
        own.compute_seconds = sum(stats.compute_seconds for stats in told)
        own.restarts = sum(stats.restarts for stats in told)
        return own

    async def infer(self, feeds: dict[str, Any], timeout: float | None = None) -> Arrays:
        """Return the outputs of a request; see `ServedModel.infer`.

        A request whose replica dies is given to another one once, as long as there is time.
        """
        self.asked += 1
        arrays = check_feeds(self.manifest.inputs, feeds)
        limit = self.options.timeout_ms / 1000 if timeout is None else timeout
        rows = len(next(iter(arrays.values())))
        try:
            outputs = await self._within(arrays, rows, limit)
        except asyncio.CancelledError:
            self._own.failures["cancelled"] += 1
            raise
        except (MlpDeployError, InternalError) as error:
            self._own.failures[type(error).__name__] += 1
            raise
        self._own.requests += 1
        self._own.rows += rows
        return outputs

    async def _within(self, arrays: Arrays, rows: int, limit: float) -> Arrays:
        """Return the outputs if they come in time."""
        if self._closing:
            raise UnavailableError(f"model {self.name} is being closed", fix="try again later")
        if not limit > 0:
            raise DeadlineError("the deadline had passed when the request came")
        task = asyncio.ensure_future(self._ask(arrays, time.monotonic() + limit))
        self._open[task] = rows
        try:
            await asyncio.wait({task}, timeout=limit)
            if not task.done():
                raise DeadlineError(f"no answer within {limit:.3g} s", fix="allow more time, or try again later")
            if task.cancelled():
                raise UnavailableError(f"model {self.name} was closed", fix="try again later")
            return task.result()
        finally:
            task.cancel()
            del self._open[task]
            if not self._open:
                self._drained.set()

    async def _ask(self, arrays: Arrays, end: float) -> Arrays:
        """Have a replica answer, and another one if the first dies."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import BackPressureError, RayServeException

        for _ in range(_ATTEMPTS):
            response = self._infer.remote(arrays, end - time.monotonic())
            try:
                return self._take(await response)
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError as error:
                raise QueueFullError(f"no replica of {self.name} is free ({error})", fix="try again later") from error
            except RayTaskError:
                raise  # a bug in `Replica`
            except (RayError, RayServeException):
                continue
        raise UnavailableError(f"the replica that computed it ended {_ATTEMPTS} times", fix="try again later")

    def _take(self, reply: Reply) -> Arrays:
        self._replicas[reply.replica] = time.monotonic(), reply.stats
        if reply.error is not None:
            raise error_of(reply.error)
        assert reply.outputs is not None
        return reply.outputs

    async def close(self, drain_seconds: float = 0.0) -> None:
        """Take no more requests, answer the accepted ones within `drain_seconds`, fail the rest, end the replicas."""
        self._closing = True
        if self._open and drain_seconds > 0:
            self._drained.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._drained.wait(), drain_seconds)
        for task in self._open:
            task.cancel()
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.to_thread(self._delete)

    def _delete(self) -> None:
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        if self._infer is not None:
            self._infer.shutdown()  # or its tasks go on in this process, for each version that was ever served
        with contextlib.suppress(RayError, RayServeException):  # the cluster is gone
            serve.delete(self.application)
