"""Where the workers of a cluster come from: processes of this machine, jobs of SLURM, or a scheduler that runs already.

Everything is dask.distributed and dask-jobqueue; this module says how they are set. One process per worker with one
task at a time; connections are encrypted with keys made for the run, so that nobody else of a shared machine can send
tasks; no dashboard, no page, nothing listens but the scheduler and the workers.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mrisr import environment
from mrisr.batch.deliver import make_folder
from mrisr.errors import CATCHING, BackendError, InputError, UsageError, because

__all__ = ["CONFIG", "Cluster", "connected"]

SCHEMES = ("tcp://", "tls://")
CORES = 4  # of a worker without a GPU, where nothing else is said
MEMORY = "8GB"  # of a SLURM job, where nothing else is said
ARRIVAL = 60.0  # seconds in which a scheduler that runs already has to have a worker
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TAIL = 600  # bytes of a job's log that a message shows

CONFIG = {
    "distributed.scheduler.allowed-failures": 1,  # a scan that two workers died of is not given to a third
    "distributed.scheduler.worker-saturation": 1.0,  # no scan waits on a worker that may die
    "distributed.scheduler.worker-ttl": "30 minutes",  # a network that holds the interpreter sends no heartbeat
    "distributed.scheduler.unknown-task-duration": "10 minutes",  # `adapt` asks for workers by what is left to do
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.memory.target": False,  # results are a few lines: nothing to spill
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
}
# After so long a worker that is gone is given up. Here its process is started again, however long that takes on a busy
# machine; a job that is gone stays gone, and `adapt` asks for another.
GIVEN_UP = {"local": "1 hour", "slurm": "30s"}


@dataclass(frozen=True)
class Cluster:
    """Where to run.

    where       "local", "slurm", or the address of a scheduler ("tcp://host:port", "tls://host:port")
    workers     at most so many; None: a process per GPU, or per `cores` cores (local); as many as scans, to 100 (slurm)
    cores       of each worker
    memory      of each worker, such as "8GB": one that takes more is ended, and its scan tried once more
    directives  more lines for sbatch, such as "--partition=gpu"
    logs        folder of the jobs' own words, and of the keys while the run lasts; every node has to see it
    """

    where: str
    workers: int | None = None
    cores: int | None = None
    memory: str | None = None
    directives: tuple[str, ...] = ()
    logs: Path | None = None

    def __post_init__(self) -> None:
        if self.where not in ("local", "slurm") and not self.where.startswith(SCHEMES):
            raise UsageError(f"--cluster: expected local, slurm or tcp://HOST:PORT, found {self.where!r}")
        if self.where != "slurm" and self.directives:
            raise UsageError("--sbatch: is for --cluster slurm")
        if self.where.startswith(SCHEMES) and (self.workers or self.cores or self.memory):
            raise UsageError(
                "--workers, --worker-cores, --worker-memory: a scheduler that runs has its workers already"
            )


@dataclass(frozen=True)
class Connection:
    """A client, and `check()`, which raises BackendError where no worker can come any more."""

    client: Any
    check: Callable[[], None]


@contextmanager
def connected(cluster: Cluster, scans: int, device: str) -> Iterator[Connection]:
    """A client of the cluster, whose workers are coming; they go when the block ends.

    Raises:
        InputError: the extra `cluster` is not installed.
        BackendError: no scheduler there, or sbatch refuses.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise InputError(
            f"--cluster: needs {error.name} ({because(error)}); install it: pip install '.[cluster]'"
        ) from error
    cores = cluster.cores or min(CORES, environment.cores())
    threads = {f"distributed.nanny.pre-spawn-environ.{name}": cores for name in THREADS}
    patience = {"distributed.deploy.lost-worker-timeout": GIVEN_UP.get(cluster.where, "30s")}
    with dask.config.set({**CONFIG, **threads, **patience}), _silent("distributed"), ExitStack() as stack:
        if cluster.where == "local":
            scheduler, check = _local(cluster, cores, device, stack), lambda: None
        elif cluster.where == "slurm":
            scheduler, check = _slurm(cluster, cores, scans, device, stack)
        else:
            scheduler, check = cluster.where, lambda: None
        try:
            client = stack.enter_context(distributed.Client(scheduler, set_as_default=False, timeout="30s"))
        except (OSError, TimeoutError, ValueError) as error:
            raise BackendError(f"--cluster: no scheduler answers at {cluster.where} ({because(error)})") from error
        if isinstance(scheduler, str):
            _check_scheduler(client, cluster.where)
        yield Connection(client, check)


def _local(cluster: Cluster, cores: int, device: str, stack: ExitStack) -> Any:
    """Worker processes of this machine, each started again when it dies."""
    from distributed import Nanny, Scheduler, SpecCluster
    from distributed.system import MEMORY_LIMIT

    gpus = _gpus(device)
    count = cluster.workers or len(gpus) or max(1, environment.cores() // cores)
    security = _keys()
    scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mrisr-", ignore_cleanup_errors=True))
    common = {"host": "127.0.0.1", "security": security, "protocol": "tls"}
    own = {
        "nthreads": 1,
        "memory_limit": cluster.memory or MEMORY_LIMIT // count,
        "dashboard": False,
        "local_directory": scratch,
        "silence_logs": logging.CRITICAL,
        **common,
    }
    workers = {}
    for index in range(count):
        env = {"MRISR_WORKERS": str(count)}
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        workers[index] = {"cls": Nanny, "options": {**own, "env": env}}
    scheduler = {"port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0", **common}
    return stack.enter_context(
        SpecCluster(
            workers=workers,
            scheduler={"cls": Scheduler, "options": scheduler},
            security=security,
            silence_logs=logging.CRITICAL,
        )
    )


def _slurm(cluster: Cluster, cores: int, scans: int, device: str, stack: ExitStack) -> tuple[Any, Callable[[], None]]:
    """A worker per SLURM job; jobs that end are replaced while there is work. Queue, account and the like come from
    `--sbatch` or from dask's own configuration (jobqueue.slurm)."""
    import dask
    from dask_jobqueue import SLURMCluster

    directives = list(cluster.directives)
    if device.startswith("cuda") and not any("gpu" in line for line in directives):
        directives.append("--gres=gpu:1")
    has_limit = any(line.startswith(("-t ", "-t=", "--time")) for line in directives)
    defaults = dask.config.get("jobqueue.slurm", {})
    if cluster.logs is None:
        raise UsageError("cluster: slurm needs `logs`, a folder that every node sees")
    make_folder(cluster.logs)
    logs = str(cluster.logs.resolve())
    words = [f"export {_variable(name)}={value}" for name, value in _for_workers(cores).items()]
    options = {
        "cores": 1,
        "processes": 1,
        "job_cpu": cores,
        "memory": cluster.memory or defaults.get("memory") or MEMORY,
        "job_extra_directives": [*(defaults.get("job-extra-directives") or []), *directives],
        "job_directives_skip": [*(defaults.get("job-directives-skip") or []), *(["#SBATCH -t "] if has_limit else [])],
        "job_script_prologue": [*(defaults.get("job-script-prologue") or []), *words],
        "job_name": "mrisr",
        "log_directory": logs,
        "shared_temp_directory": defaults.get("shared-temp-directory") or logs,
        "worker_extra_args": [*(defaults.get("worker-extra-args") or []), "--no-dashboard"],
        "security": _keys(),
        "silence_logs": logging.CRITICAL,
    }
    where = dict(defaults.get("scheduler-options") or {})
    if not defaults.get("interface") and not {"host", "interface"} & set(where):
        where["host"] = _address()  # the address that the nodes see, and no other
    options["scheduler_options"] = {"dashboard": False, "dashboard_address": "127.0.0.1:0", **where}
    most = min(cluster.workers or 100, scans)
    slurm = stack.enter_context(SLURMCluster(**options))
    jobs = _Jobs(slurm, cluster.logs)
    jobs.submit_first()
    slurm.adapt(minimum=1, maximum=most, interval="2s", wait_count=5, target_duration="1s")
    return slurm, jobs.check


class _Jobs:
    """Tells jobs that wait from jobs that end before their worker has come."""

    def __init__(self, cluster: Any, logs: Path) -> None:
        self.cluster, self.logs = cluster, logs
        self.arrived = False

    def submit_first(self) -> None:
        """BackendError where sbatch refuses: `adapt` would try for ever."""
        from distributed.core import Status

        cluster = self.cluster
        try:
            cluster.worker_spec.update(cluster.new_worker_spec())
            cluster.sync(cluster._correct_state)
        except (OSError, RuntimeError, ValueError) as error:
            for job in list(cluster._created):  # never begun, and closing the cluster takes that for a bug
                job.status = Status.failed
            text = str(error).split("stderr:")[-1].strip() or error
            raise BackendError(
                f"--cluster slurm: sbatch does not take the job ({' '.join(str(text).split())})"
            ) from error

    def check(self) -> None:
        """BackendError where every job has ended and no worker ever came."""
        self.arrived = self.arrived or bool(self.cluster.scheduler_info.get("workers"))
        jobs = {job.job_id: job for job in list(self.cluster.workers.values()) if getattr(job, "job_id", None)}
        if self.arrived or not jobs or _any_in_queue(list(jobs)):
            return
        last = max(jobs, key=int)
        text = "".join(path.read_text(errors="replace") for path in self.logs.glob(f"mrisr-{last}.err"))
        raise BackendError(
            f"--cluster slurm: job {last} ended before its worker could work; {self.logs} has what it said"
            + (f": ...{' '.join(text[-TAIL:].split())}" if text else "; check that the nodes see this environment")
        )


def _any_in_queue(jobs: list[str]) -> bool:
    """Whether SLURM still has any of the jobs, waiting or running."""
    import subprocess

    command = ["squeue", "--noheader", "--format=%T", f"--jobs={','.join(jobs)}", "--states=all"]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:  # jobs that are long over are "invalid" to squeue; anything else will be asked again
        return "Invalid job id" not in process.stderr
    final = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
    return any(state not in final for state in process.stdout.split())


def _for_workers(cores: int) -> dict[str, Any]:
    """What a worker in a job has to know, which is no child of this process; sbatch hands on the environment."""
    own = {name: value for name, value in CONFIG.items() if name.startswith("distributed.worker.")}
    return {**own, **{f"distributed.nanny.pre-spawn-environ.{name}": cores for name in THREADS}}


def _address() -> str:
    """The address that other machines see; where none is told apart (no route), the one of the host's name."""
    from distributed.utils import get_ip

    with CATCHING, warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return get_ip()


def _variable(name: str) -> str:
    """The environment variable that dask reads `name` from."""
    return "DASK_" + name.upper().replace(".", "__").replace("-", "_")


def _keys() -> Any:
    """Keys for this run alone."""
    from distributed import Security

    try:
        return Security.temporary()
    except ImportError as error:
        raise InputError(
            f"--cluster: needs cryptography ({because(error)}); install it: pip install '.[cluster]'"
        ) from error


def _gpus(device: str) -> list[str]:
    """The names that CUDA_VISIBLE_DEVICES has for the GPUs to use, one a worker; empty: CPU."""
    if device == "cpu":
        return []
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    names = visible[:count] if visible else [str(index) for index in range(count)]
    if ":" not in device:
        return names
    index = device.split(":", 1)[1]
    if not index.isdigit() or int(index) >= len(names):
        raise BackendError(f"--device: {device} is not there; found {len(names)} GPUs")
    return [names[int(index)]]


def _check_scheduler(client: Any, address: str) -> None:
    """A scheduler that somebody else has started: it needs workers that take one scan at a time."""
    try:
        client.wait_for_workers(1, timeout=ARRIVAL)
    except TimeoutError as error:
        raise BackendError(f"--cluster: {address} has no worker after {ARRIVAL:.0f} s; start some") from error
    several = sorted({w["nthreads"] for w in client.scheduler_info(n_workers=-1)["workers"].values()} - {1})
    if several:
        raise BackendError(
            f"--cluster: a worker at {address} takes {several[-1]} scans at a time; start workers with --nthreads 1"
        )
    failures, saturation = client.run_on_scheduler(_rules)
    if failures > CONFIG["distributed.scheduler.allowed-failures"] or saturation != 1.0:
        raise BackendError(
            f"--cluster: the scheduler at {address} gives a scan to {failures + 1} workers that die of it, and "
            f"worker-saturation is {saturation}; start it with DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES=1 and "
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION=1.0"
        )


def _rules(dask_scheduler: Any) -> tuple[int, float]:
    return dask_scheduler.allowed_failures, dask_scheduler.WORKER_SATURATION


@contextmanager
def _silent(name: str) -> Iterator[None]:
    """What the library logs of lost workers is said by mrisr, once, by the scan's name."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
