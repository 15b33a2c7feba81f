"""The one engine: papermill on Dask, for the book, for single reruns and for sweeps.

A :class:`Task` is one notebook to execute. Tasks go to the workers of a Dask cluster: processes of
this machine, or a cluster that is there already. Each worker executes one notebook at a time, in a
kernel of its own.
"""

import logging
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kpnb_book.run.display import Display
from kpnb_book.run.errors import NotebookError, UsageError

if TYPE_CHECKING:
    from distributed import Client, Future, SpecCluster


@dataclass(frozen=True)
class Task:
    """A notebook to execute: ``work(**arguments, tell=..., scratch=...)``, a function that workers
    can import, after the tasks whose names are in ``after``. ``label`` is what is shown of it. What
    its kernel's process says outside the cells is in the file ``log``, if there is any. A ``long``
    one begins before others, so that no worker is left alone with it in the end.
    """

    name: str
    label: str
    work: Callable[..., Any]
    arguments: Mapping[str, Any]
    log: Path
    after: Sequence[str] = ()
    long: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of a task: the ``value`` that its work returned, or why it ``failed``."""

    value: Any = None
    failed: str = ""


@contextmanager
def cluster(workers: int = 1, scheduler: str | None = None) -> "Iterator[Client]":
    """A client of the Dask cluster at the address ``scheduler``, else of ``workers`` processes of
    this machine, which end with it however it ends.

    Two or more workers here share the cores and have one GPU each, as far as there are GPUs; what
    the user has set (``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``) stays. Workers of a cluster are
    what they were started as. Raises UsageError when no scheduler answers.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers}: it takes one at least")
    from distributed import Client

    with ExitStack() as stack:
        if scheduler:
            try:
                client = Client(scheduler)
            except (OSError, ValueError) as error:
                raise UsageError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        else:
            client = Client(stack.enter_context(_local(workers)))
        yield stack.enter_context(client)


@contextmanager
def _local(count: int) -> "Iterator[SpecCluster]":
    """Worker processes of one thread each. Only those with the key made for this cluster can
    speak to it: a scheduler executes what it is sent, and other users of the machine see its port.
    """
    import dask
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.security import Security

    settings = {
        # Dask would choose numbers of threads, and thresholds of the allocator.
        "distributed.nanny.pre-spawn-environ": {},
        # It would look at itself a hundred times a second: an eighth of a core while all wait.
        "distributed.worker.profile.enabled": False,
        "distributed.admin.tick.interval": "1s",
        "distributed.admin.system-monitor.interval": "5s",
    }
    seeded = "PYTHONHASHSEED" in os.environ
    security = Security.temporary()
    common = {"host": "127.0.0.1", "protocol": "tls://", "security": security}
    common |= {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="kpnb-"))
        stack.enter_context(dask.config.set(settings | {"temporary-directory": folder}))
        each = common | {"nthreads": 1, "memory_limit": 0, "local_directory": folder}
        each |= {"silence_logs": logging.CRITICAL}
        workers = {
            number: {"cls": Nanny, "options": each | {"env": env}}
            for number, env in enumerate(environments(count))
        }
        scheduler = {"cls": Scheduler, "options": common | {"port": 0}}
        try:
            with SpecCluster(
                workers, scheduler, security=security, silence_logs=logging.CRITICAL
            ) as started:
                yield started
        finally:
            if not seeded:
                os.environ.pop("PYTHONHASHSEED", None)  # Dask sets it here for its workers


def environments(count: int) -> list[dict[str, str]]:
    """What each of ``count`` workers of this machine has in its environment besides ours: its share
    of the cores, and one GPU. A single worker has everything.
    """
    if count == 1:
        return [{}]
    threads = str(max(1, (os.cpu_count() or 1) // count))
    common = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    gpus = _gpus()
    if not gpus:
        return [common] * count
    return [
        common | {"CUDA_VISIBLE_DEVICES": gpu}
        for _, gpu in zip(range(count), cycle(gpus), strict=False)
    ]


def _gpus() -> list[str]:
    """The GPUs that may be used, as the user has named them, else by number."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu for gpu in named.split(",") if gpu]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def run(
    client: "Client", tasks: Sequence[Task], *, stop_at_failure: bool = False, done: int = 0
) -> dict[str, Outcome]:
    """Do ``tasks`` and return what became of them, by name; ``done`` more are finished already.

    A task that fails keeps no other from being done, those that are to come after it included; with
    ``stop_at_failure`` those that have not begun are left out. When this is interrupted, too.
    """
    topic, outcomes = f"kpnb-{uuid.uuid4().hex}", {}
    waiting, running = in_order(tasks), {}
    with Display(tasks, done) as display:
        client.subscribe_topic(
            topic, lambda event: display.hear(event[1]["name"], event[1]["line"])
        )
        try:
            while waiting or running:
                for task in _next(waiting, running.values(), _free(client, len(running))):
                    waiting.remove(task)
                    running[_submit(client, task, topic)] = task.name
                for future in _ended(running):
                    name = running.pop(future)
                    outcomes[name] = _outcome(future)
                    display.end(name, outcomes[name].failed)
                    if outcomes[name].failed and stop_at_failure:
                        return outcomes
        finally:
            if client.status == "running":  # else its scheduler is lost
                client.unsubscribe_topic(topic)
                client.cancel([*running])
    return outcomes


def in_order(tasks: Sequence[Task]) -> list[Task]:
    """``tasks`` with those first for which most others wait, then long ones, but each behind those
    that it comes after. A name in ``after`` that no task has is done already. Raises NotebookError
    for tasks that wait for each other.
    """
    wanted = Counter(name for task in tasks for name in task.after)
    first = sorted(tasks, key=lambda task: (-wanted[task.name], not task.long))
    waiting, ordered = {task.name: task for task in first}, []
    while waiting:
        free = next((t for t in waiting.values() if not waiting.keys() & set(t.after)), None)
        if free is None:
            raise NotebookError(f"these wait for each other: {', '.join(waiting)}")
        ordered.append(waiting.pop(free.name))
    return ordered


def _free(client: "Client", running: int) -> int:
    """How many tasks the cluster's workers could begin. A task that is handed over stays with its
    worker, also when another one is idle; so it is handed over when one is free. Workers may come
    and go, and at least one is expected.
    """
    return max(1, sum(client.nthreads().values())) - running


def _next(waiting: Sequence[Task], running: Iterable[str], count: int) -> list[Task]:
    """At most ``count`` tasks that can begin: what they come after has ended."""
    pending = {task.name for task in waiting} | {*running}
    ready = (task for task in waiting if not pending & {*task.after})
    return [*islice(ready, max(0, count))]


def _ended(running: "Iterable[Future]") -> "list[Future]":
    """Those that have ended, once there are some; or none after a while, since workers may have
    joined.
    """
    from distributed import wait

    with suppress(TimeoutError, CancelledError):
        wait([*running], timeout=2, return_when="FIRST_COMPLETED")
    return [future for future in running if future.done()]


def _submit(client: "Client", task: Task, topic: str) -> "Future":
    key = f"{task.name}-{uuid.uuid4().hex}"
    return client.submit(perform, task, topic, key=key, pure=False, retries=0)


def perform(task: Task, topic: str) -> Outcome:
    """Do a task in a worker, and tell those who listen to ``topic`` what it is doing."""
    from distributed import get_worker

    worker = get_worker()

    def tell(line: str) -> None:
        worker.log_event(topic, {"name": task.name, "line": line})

    tell("")
    try:
        return Outcome(task.work(**task.arguments, tell=tell, scratch=worker.local_directory))
    except (NotebookError, UsageError, OSError) as error:
        return Outcome(failed=str(error))


def _outcome(future: "Future") -> Outcome:
    """What became of a task, whose worker or cluster may be lost as well."""
    try:
        return future.result()
    except Exception as error:
        return Outcome(failed=f"{type(error).__name__}: {error}")
