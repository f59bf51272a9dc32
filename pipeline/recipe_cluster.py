"""The recipe's ``[cluster]``: where a build runs. Nothing here changes what a data set holds, nor the recipe's hash."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=100_000)]
Gigabytes = Annotated[float, Field(gt=0)]
SCHEDULER_ADDRESS = r"^(tcp|tls)://[A-Za-z0-9.\[\]:_-]+:[0-9]{1,5}$"
SchedulerAddress = Annotated[
    str,
    Field(pattern=SCHEDULER_ADDRESS, examples=["tcp://host:8786", "tls://host:8786"]),
]
"""Of a Dask scheduler: ``tcp://host:port``, or ``tls://host:port`` where it asks for certificates."""


Minutes = Annotated[float, Field(gt=0)]
WAIT_MINUTES = 30.0


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class LocalSettings(_Section):
    """Processes on this machine, which listen on 127.0.0.1 alone; one a core, unless ``workers`` says how many."""

    kind: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=1, le=1_024)] | None = None


class _Awaited(_Section):
    """A cluster that takes its time: so many minutes its first worker is waited for."""

    wait_minutes: Minutes = WAIT_MINUTES


class _Secured(_Awaited):
    """A cluster over a network. ``tls_ca``, ``tls_cert``, ``tls_key``: PEM files that all its machines see there."""

    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    @model_validator(mode="after")
    def _all_of_tls(self) -> _Secured:
        given = [name for name in TLS_FILES if getattr(self, name)]
        if given and len(given) < len(TLS_FILES):
            missing = [name for name in TLS_FILES if name not in given]
            raise ValueError(f"TLS needs all of {', '.join(TLS_FILES)}; missing: {', '.join(missing)}")
        return self


TLS_FILES = ("tls_ca", "tls_cert", "tls_key")


class SchedulerSettings(_Secured):
    """A scheduler that runs already."""

    kind: Literal["scheduler"] = "scheduler"
    address: SchedulerAddress

    @model_validator(mode="after")
    def _tls_both_or_neither(self) -> SchedulerSettings:
        if self.address.startswith("tls://") != bool(self.tls_ca):
            raise ValueError("an address tls://… and the keys tls_ca, tls_cert, tls_key go together")
        return self


class SshSettings(_Secured):
    """Machines reached over SSH: the scheduler runs on the first, ``workers_per_host`` workers on each of the others.

    ``interface``: the network interface that workers listen on, and no other (``eth1``); the scheduler listens on the
    first host's address. ``python``: the interpreter there, with the same lumid.
    """

    kind: Literal["ssh"] = "ssh"
    hosts: Annotated[tuple[str, ...], Field(min_length=2)]
    interface: str
    workers_per_host: Count = 1
    python: str | None = None


class SlurmSettings(_Secured):
    """Jobs of Slurm through dask-jobqueue: ``jobs`` of them, each of ``cores`` workers that share ``memory_gb``.

    ``interface``: the network interface of the cluster's own network on every node (``ib0``, ``eth1``), which is all
    that scheduler and workers listen on. ``directives``: further lines for ``#SBATCH``. Jobs may wait in the queue for
    ``wait_minutes``, a day unless given.
    """

    kind: Literal["slurm"] = "slurm"
    wait_minutes: Minutes = 24 * 60.0
    jobs: Count
    cores: Count
    memory_gb: Gigabytes
    interface: str
    walltime: Annotated[
        str, Field(pattern=r"^([0-9]+-)?[0-9]{1,2}:[0-9]{2}:[0-9]{2}$", examples=["24:00:00", "2-12:00:00"])
    ] = "24:00:00"
    queue: str | None = None
    account: str | None = None
    scratch: str | None = None
    directives: tuple[str, ...] = ()


class KubernetesSettings(_Awaited):
    """Pods of dask-kubernetes' operator, each a worker of one core with ``memory_gb``, of an image that holds lumid.

    ``volumes``: which PersistentVolumeClaim a worker has under which path; the build needs them under the same ones.
    """

    kind: Literal["kubernetes"] = "kubernetes"
    image: str
    workers: Count
    memory_gb: Gigabytes = 4.0
    namespace: str = "default"
    volumes: dict[str, str] = Field(default_factory=dict)


AnyCluster = LocalSettings | SchedulerSettings | SshSettings | SlurmSettings | KubernetesSettings
"""One way to have workers."""
