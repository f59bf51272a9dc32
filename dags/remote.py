"""Dask clusters on other machines, by the recipe's ``[cluster]``: SSH, Slurm, Kubernetes, or one that runs already."""

from __future__ import annotations

import importlib
import logging
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

from distributed.security import Security

from lumid.catalog.errors import LumidError, RecipeError
from lumid.pipeline.recipe_cluster import (
    TLS_FILES,
    AnyCluster,
    KubernetesSettings,
    LocalSettings,
    SchedulerSettings,
    SlurmSettings,
    SshSettings,
)

WORKERS_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TARGET": "False",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
"""One thread a library, no image written to a node's disk to make room, and no sampling of stacks, which can lock up."""
DASHBOARD = "127.0.0.1:0"
IDLE_S = 3600
"""So long a cluster of pods outlives its build."""


def security_of(settings: AnyCluster) -> Security | None:
    """TLS in both directions with the settings' files; None where they have none.

    Raises :class:`~lumid.catalog.errors.RecipeError` for a file that is not there.
    """
    files = {name: getattr(settings, name, None) for name in TLS_FILES}
    if not files["tls_ca"]:
        return None
    for name, path in files.items():
        if not Path(str(path)).is_file():
            raise RecipeError(f"cluster.{name}: the file is not there")
    ca, cert, key = (files[name] for name in TLS_FILES)
    pairs = {f"tls_{role}_{part}": path for role in ("client", "scheduler", "worker") for part, path in (("cert", cert), ("key", key))}  # fmt: skip
    return Security(tls_ca_file=ca, require_encryption=True, **pairs)


def start_remote(settings: AnyCluster, threads: int) -> Any:
    """A running cluster object of Dask; closing it ends what was started. ``threads``: a worker's.

    Raises :class:`~lumid.catalog.errors.LumidError` when its package is missing or it does not start.
    """
    assert not isinstance(settings, LocalSettings | SchedulerSettings)
    makers = {SshSettings: _ssh, SlurmSettings: slurm, KubernetesSettings: _kubernetes}
    try:
        return makers[type(settings)](settings, threads)  # type: ignore[operator]
    except LumidError:
        raise
    except Exception as error:  # whatever ssh, sbatch or the Kubernetes API fail with
        raise LumidError(
            f"[cluster] kind = '{settings.kind}': the cluster does not start ({type(error).__name__}); see docs/clusters.md"
        ) from None


def _ssh(settings: SshSettings, threads: int) -> Any:
    _package("asyncssh", "ssh")
    from distributed.deploy.ssh import SSHCluster

    logging.getLogger("distributed.deploy.ssh").setLevel(logging.WARNING)  # it repeats what everyone says as they start
    first = settings.hosts[0]
    return SSHCluster(
        list(settings.hosts),
        scheduler_options={"host": first, "port": 0, "dashboard_address": DASHBOARD},
        worker_options={"nthreads": threads, "n_workers": settings.workers_per_host, "interface": settings.interface},
        remote_python=settings.python,
        security=security_of(settings) or Security(),
    )


def slurm(settings: SlurmSettings, threads: int) -> Any:
    """The cluster of Slurm jobs, and ``jobs`` of them asked for."""
    cluster = _package("dask_jobqueue", "slurm").SLURMCluster(**slurm_options(settings, threads))
    cluster.scale(jobs=settings.jobs)
    return cluster


def slurm_options(settings: SlurmSettings, threads: int) -> dict[str, Any]:
    """What dask-jobqueue is given; a job's cores are shared out among workers of one core each."""
    security = security_of(settings)
    return {
        "cores": settings.cores * threads,
        "processes": settings.cores,
        "job_cpu": settings.cores,
        "memory": f"{settings.memory_gb:g}GB",
        "walltime": settings.walltime,
        "queue": settings.queue,
        "account": settings.account,
        "interface": settings.interface,
        "local_directory": settings.scratch,
        "job_extra_directives": list(settings.directives),
        "job_script_prologue": [f"export {name}={value}" for name, value in WORKERS_ENVIRONMENT.items()],
        "scheduler_options": {"interface": settings.interface, "dashboard_address": DASHBOARD},
        "security": security,
        "protocol": "tls://" if security else "tcp://",
    }


def _kubernetes(settings: KubernetesSettings, threads: int) -> Any:
    package = _package("dask_kubernetes.operator", "kubernetes")
    spec = kubernetes_spec(settings, threads)
    return package.KubeCluster(namespace=settings.namespace, custom_cluster_spec=spec, quiet=True)


def kubernetes_spec(settings: KubernetesSettings, threads: int) -> dict[str, Any]:
    """The DaskCluster resource: workers of one core, with the settings' claims mounted.

    Its name is its own, so that of two builds neither joins, nor ends, the other's; one that a killed build left behind
    ends by itself.
    """
    limits = {"cpu": "1", "memory": f"{settings.memory_gb:g}G"}
    spec: dict[str, Any] = _package("dask_kubernetes.operator", "kubernetes").make_cluster_spec(
        name=f"lumid-{secrets.token_hex(4)}",
        image=settings.image,
        n_workers=settings.workers,
        resources={"requests": limits, "limits": limits},
        env=WORKERS_ENVIRONMENT,
        worker_command=["dask", "worker", "--nthreads", str(threads)],
        idle_timeout=IDLE_S,
    )
    scheduler, worker = (spec["spec"][part]["spec"] for part in ("scheduler", "worker"))
    for container in (*scheduler["containers"], *worker["containers"]):
        container["command"] = [container["args"].pop(0)]  # in place of the image's own, which is lumid
    claims = list(settings.volumes.items())
    worker["volumes"] = [
        {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, (_, claim) in enumerate(claims)
    ]
    for container in worker["containers"]:
        container["volumeMounts"] = [
            {"name": f"volume-{number}", "mountPath": path} for number, (path, _) in enumerate(claims)
        ]
    return spec


def _package(module: str, extra: str) -> ModuleType:
    """An optional dependency; raises :class:`LumidError` with what to install."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.partition(".")[0].replace("_", "-")
        raise LumidError(f"[cluster] kind = '{extra}' needs {name}: pip install 'lumid[{extra}]'") from None
