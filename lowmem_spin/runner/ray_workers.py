"""Workers that are Ray actors: processes of their own, one for each GPU, on this machine or on a cluster."""

import logging
import os
import socket
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowmem_spin.algorithm.stages import Stage
from lowmem_spin.common.display import Display
from lowmem_spin.common.errors import InputError, quoted, shortened
from lowmem_spin.common.trust import Trust
from lowmem_spin.config.grid import SweepPoint
from lowmem_spin.runner.crew import Done
from lowmem_spin.runner.sweep_worker import SweepWorker
from lowmem_spin.runner.worker_count import check_gpus

STARTING = 300  # seconds that workers may take to be there
OBJECTS = 100_000_000  # bytes of Ray's object store, through which only steps' numbers go


class RayWorkers:
    """Ray actors as a crew's workers.

    Args:
        count: how many, or None for one for each GPU; without a GPU that is one.
        address: of a Ray cluster that runs already; None starts one on this machine, for as long as these live.
        steps: (point, stage, whether only samples) of each step.
        logs: folder for a log of each.
        display: whose deadline is theirs, too.

    Raises:
        InputError: Ray is not here, does not answer, has too few GPUs, or does not see the store; one line.
    """

    def __init__(
        self,
        count: int | None,
        address: str | None,
        points: Sequence[SweepPoint],
        recipe_dir: Path,
        steps: Sequence[tuple[int, Stage, bool]],
        logs: Path,
        display: Display,
        trust: Trust,
        on_gpu: bool,
    ) -> None:
        self.ray, self.began = _joined(address, count)
        self.steps, self.display = steps, display
        try:
            gpus = int(self.ray.cluster_resources().get("GPU", 0)) if on_gpu else 0
            if on_gpu:
                check_gpus(count, gpus)
            self.count = count or max(1, gpus)
            threads = max(1, int(self.ray.cluster_resources().get("CPU", 1)) // self.count)
            variables = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
            here, folder = os.getcwd(), logs.resolve()
            asked = {"num_cpus": 0, "num_gpus": 1} if on_gpu else {"num_cpus": 0.01}  # of none at all nothing is spread
            options = {**asked, "max_concurrency": 2, "runtime_env": {"env_vars": variables}, "scheduling_strategy": "SPREAD"}
            actor = self.ray.remote(SweepWorker).options(**options)
            self._make = lambda worker: actor.remote(
                points, recipe_dir.resolve(), here, folder / f"worker-{worker + 1}.log", trust
            )
            self.actors = [self._make(worker) for worker in range(self.count)]
            self.under_way: dict[Any, int] = {}
            self.coming: dict[int, Any] = {}  # worker -> what it answers once it is there
            _check_seen(self.ray, self.actors, [Path(root).resolve() for root in {p.recipe.output.store for p in points}])
        except BaseException:
            self.close()
            raise

    def start(self, worker: int, step: int) -> None:
        """See crew.Workers."""
        self._begin(worker, step, helps=False)

    def assist(self, worker: int, step: int) -> None:
        """See crew.Workers."""
        self._begin(worker, step, helps=True)

    def _begin(self, worker: int, step: int, helps: bool) -> None:
        deadline = self.display.deadline
        left = None if deadline is None else max(0.0, deadline - time.perf_counter())
        self.under_way[self.actors[worker].play.remote(*self.steps[step], left, helps)] = worker

    def wait(self, seconds: float) -> list[tuple[int, Done]]:
        """See crew.Workers."""
        ended, _ = self.ray.wait([*self.under_way, *self.coming.values()], num_returns=1, timeout=seconds)
        return [(self.under_way.pop(one), self._done(one)) for one in ended if one in self.under_way]

    def _done(self, reference: Any) -> Done:
        try:
            return self.ray.get(reference)
        except (
            self.ray.exceptions.RayActorError,
            self.ray.exceptions.WorkerCrashedError,
            self.ray.exceptions.OutOfMemoryError,
        ):
            return Done(died=True)
        except Exception as error:  # noqa: BLE001 - one that did not travel, or the worker could not begin
            return Done(error=error)

    def progress(self, worker: int) -> str | None:
        """See crew.Workers."""
        try:
            return self.ray.get(self.actors[worker].progress.remote(), timeout=10)
        except (self.ray.exceptions.GetTimeoutError, self.ray.exceptions.RayActorError):
            return None  # it is busy, or has died, which `wait` will tell

    def replace(self, worker: int) -> None:
        """See crew.Workers."""
        self.ray.kill(self.actors[worker])
        self.actors[worker] = self._make(worker)
        self.coming[worker] = self.actors[worker].sees.remote(Path())

    def ready(self, worker: int) -> bool:
        """See crew.Workers."""
        if worker in self.coming and self.ray.wait([self.coming[worker]], timeout=0)[0]:
            del self.coming[worker]
        return worker not in self.coming

    def close(self) -> None:
        """End the workers, and what was started for them; what they have committed is in the store."""
        for actor in getattr(self, "actors", []):
            self.ray.kill(actor)
        if self.began:
            self.ray.shutdown()


def _joined(address: str | None, count: int | None) -> tuple[Any, bool]:
    """(ray, whether it is ours to shut down)"""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # they are what the person waits for
    if address is None or address.startswith(("127.", "localhost", "[::1]")):  # else Ray takes this machine's own for it
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # as there, it is for this machine alone
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a worker without a GPU sees what its parent sees
    import ray

    if ray.is_initialized():
        return ray, False
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, count or 1),
            object_store_memory=OBJECTS,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            **quiet,
        )
        return ray, True
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        why = shortened(" ".join(str(error).split()))
        raise InputError(f"--ray {quoted(address)}: no cluster answers there ({why}); see `ray status`") from None
    return ray, True


def _knock(address: str) -> None:
    """Ray itself asks for minutes where nobody answers, and then ends the process.

    Raises:
        OSError: nobody answers.
        ValueError: this is no address.
    """
    if address in ("auto", "local"):
        return
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError("write it as HOST:PORT, or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _check_seen(ray: Any, actors: Sequence[Any], stores: Sequence[Path]) -> None:
    """Refuse workers on machines that do not see the store."""
    for store in stores:
        probe = store / f".seen-{uuid.uuid4().hex}"
        probe.touch()
        try:
            seen = ray.get([actor.sees.remote(probe) for actor in actors], timeout=STARTING)
        except ray.exceptions.GetTimeoutError:
            raise InputError(
                f"--workers: not all of {len(actors)} have started within {STARTING // 60} minutes: there is no room for "
                "them now; give fewer"
            ) from None
        except ray.exceptions.RayError as error:
            raise InputError(f"--workers: one cannot start: {shortened(' '.join(str(error).split()))}") from None
        finally:
            probe.unlink()
        if not all(seen):
            raise InputError(
                f"output.store: {str(store)!r} is not there on {seen.count(False)} of {len(seen)} workers' machines; put it on "
                "a drive that all of them see under the same path"
            )
