"""Where a build runs: the recipe's [cluster], certificates, and who can reach what listens."""

from __future__ import annotations

import datetime
import ipaddress
import itertools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.comm.core import CommClosedError

from lumid.catalog.errors import LumidError, RecipeError, UsageError
from lumid.dags import tasks as running
from lumid.dags.cluster import ClusterSettings, open_cluster
from lumid.dags.events import EventLog
from lumid.dags.remote import kubernetes_spec, security_of, slurm, start_remote
from lumid.dags.tasks import Task, name_of, run_tasks
from lumid.dags.watch import TaskWatch
from lumid.pipeline.recipe_cluster import (
    AnyCluster,
    KubernetesSettings,
    LocalSettings,
    SchedulerSettings,
    SlurmSettings,
    SshSettings,
)
from lumid.pipeline.recipe_files import parse_recipe

pytestmark = pytest.mark.whole

SLURM = SlurmSettings(
    jobs=2, cores=4, memory_gb=16, interface="lo", queue="short", account="imaging", scratch="/scratch",
    directives=("--exclusive",), walltime="02:00:00",
)  # fmt: skip


def _recipe(cluster: str) -> str:
    return f'name = "x"\n[[sources]]\nkind = "pydicom"\n{cluster}'


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ('[cluster]\nkind = "local"\nworkers = 3', LocalSettings(workers=3)),
        (
            '[cluster]\nkind = "ssh"\nhosts = ["a", "b"]\ninterface = "eth1"',
            SshSettings(hosts=("a", "b"), interface="eth1"),
        ),
        (
            '[cluster]\nkind = "kubernetes"\nimage = "r/lumid"\nworkers = 9\nvolumes = { "/data" = "claim" }',
            KubernetesSettings(image="r/lumid", workers=9, volumes={"/data": "claim"}),
        ),
        (
            '[cluster]\nkind = "slurm"\njobs = 2\ncores = 8\nmemory_gb = 30\ninterface = "ib0"',
            SlurmSettings(jobs=2, cores=8, memory_gb=30, interface="ib0"),
        ),
    ],
)
def test_the_recipe_says_where_and_its_hash_does_not(cluster: str, expected: AnyCluster, tmp_path: Path) -> None:
    plain = parse_recipe(_recipe(""), "plain", base=tmp_path)
    placed = parse_recipe(_recipe(cluster), "placed", base=tmp_path)
    assert plain.cluster == LocalSettings()
    assert placed.cluster == expected
    assert placed.hash() == plain.hash()
    assert "cluster" not in (placed.portable() or "")


def test_the_examples_of_the_page_are_recipes(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text("utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    kinds = [parse_recipe(_recipe(block), "page", base=tmp_path).cluster.kind for block in blocks]
    assert kinds == ["local", "scheduler", "ssh", "slurm", "kubernetes"]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (
            'kind = "local"\nworker = 2',
            "cluster.worker: unknown key; did you mean 'workers'?; allowed here: kind, workers",
        ),
        (
            'kind = "slurm"\njobs = 1\ncores = 1\nmemory_gb = 4\ninterface = "lo"\nwaitminutes = 4',
            "did you mean 'wait_minutes'?",
        ),
        ('kind = "kubernets"', "did you mean 'kubernetes'?"),
        ('kind = "slrm"', "cluster.kind: 'slrm' is not allowed; use 'local'"),
        ("workers = 2", "cluster.kind: missing"),
        ('kind = "slurm"\njobs = 1\ncores = 1\nmemory_gb = 4', "cluster.interface: missing"),
        ('kind = "scheduler"\naddress = "tls://h:1"\ntls_ca = "a"', "missing: tls_cert, tls_key"),
        ('kind = "scheduler"\naddress = "tls://h:1"', "go together"),
        (
            'kind = "scheduler"\naddress = "h"',
            "cluster.address: 'h' is not allowed; write it as tcp://host:8786 or tls://",
        ),
        ('kind = "ssh"\nhosts = ["a"]', "cluster.hosts: needs at least 2"),
    ],
)
def test_what_is_wrong_is_named(cluster: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(_recipe(f"[cluster]\n{cluster}\n"), "r", base=tmp_path)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "module", "words"),
    [
        (SshSettings(hosts=("a", "b"), interface="eth1"), "asyncssh", "needs asyncssh: pip install 'lumid[ssh]'"),
        (SLURM, "dask_jobqueue", "needs dask-jobqueue: pip install 'lumid[slurm]'"),
        (
            KubernetesSettings(image="i", workers=1),
            "dask_kubernetes.operator",
            "needs dask-kubernetes: pip install 'lumid[kubernetes]'",
        ),
    ],
)
def test_a_missing_package_is_one_line_that_says_what_to_install(
    settings: AnyCluster, module: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(LumidError) as caught:
        start_remote(settings, 1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_script_that_slurm_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    monkeypatch.setattr(jobqueue.SLURMCluster, "scale", lambda *_, **__: None)  # there is no sbatch here
    with slurm(SLURM, threads=2) as cluster:
        script = cluster.job_script()
        address = cluster.scheduler_address
    assert address.startswith("tcp://127.0.0.1:")
    wanted = (
        "#SBATCH -p short", "#SBATCH -A imaging", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=15G", "#SBATCH -t 02:00:00",
        "#SBATCH --exclusive", "export OMP_NUM_THREADS=1", "export DASK_DISTRIBUTED__WORKER__MEMORY__SPILL=False", "--nthreads 2", "--nworkers 4", "--interface lo",
        "--local-directory /scratch",
    )  # fmt: skip
    assert [words for words in wanted if words not in script] == []


def test_the_pods_that_kubernetes_is_asked_for() -> None:
    pytest.importorskip("dask_kubernetes.operator")
    settings = KubernetesSettings(
        image="r/lumid:1", workers=9, memory_gb=6, volumes={"/data": "claim", "/raw": "other"}
    )
    first, second = (kubernetes_spec(settings, threads=2) for _ in range(2))
    assert first["metadata"]["name"] != second["metadata"]["name"], "two builds, two clusters"
    assert first["spec"]["idleTimeout"] > 0
    (scheduler,) = first["spec"]["scheduler"]["spec"]["containers"]
    (worker,) = first["spec"]["worker"]["spec"]["containers"]
    assert scheduler["command"] == ["dask-scheduler"], "and not what the image would run: lumid"
    assert worker["command"] == ["dask"]
    assert worker["args"][:3] == ["worker", "--nthreads", "2"]
    assert first["spec"]["worker"]["replicas"] == 9
    assert worker["resources"]["limits"] == {"cpu": "1", "memory": "6G"}
    claims = {
        one["name"]: one["persistentVolumeClaim"]["claimName"] for one in first["spec"]["worker"]["spec"]["volumes"]
    }
    assert {one["mountPath"]: claims[one["name"]] for one in worker["volumeMounts"]} == settings.volumes


@contextmanager
def _tls_cluster(folder: Path) -> Iterator[SchedulerSettings]:
    files = _certificate(folder)
    settings = SchedulerSettings(address="tls://127.0.0.1:1", **files)
    security = security_of(settings)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "host": "127.0.0.1"}
    with LocalCluster(**options, protocol="tls", security=security, dashboard_address=None) as cluster:
        yield settings.model_copy(update={"address": cluster.scheduler_address})


def test_tls_is_spoken_and_a_stranger_is_turned_away(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "other").mkdir()
    with _tls_cluster(tmp_path / "own") as settings:
        assert settings.address.startswith("tls://127.0.0.1:")
        with open_cluster(ClusterSettings(where=settings), tmp_path) as client:
            assert client.submit(sum, [1, 2]).result(timeout=20) == 3
            assert client.scheduler.address == settings.address
        stranger = settings.model_copy(update=_certificate(tmp_path / "other"))
        with (
            pytest.raises(LumidError, match=r"^cluster\.address: tls://.*or not with this certificate$"),
            open_cluster(ClusterSettings(where=stranger), tmp_path),
        ):
            pass


def test_a_certificate_that_is_not_there_is_named() -> None:
    settings = SchedulerSettings(address="tls://127.0.0.1:1", tls_ca="/no/ca", tls_cert="/no/cert", tls_key="/no/key")
    with pytest.raises(RecipeError, match=r"cluster\.tls_ca"):
        security_of(settings)


@pytest.mark.parametrize("comes", [False, True])
def test_the_first_worker_is_waited_for_in_the_open_and_not_for_ever(
    comes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumid.dags.cluster.SAY_EVERY_S", 0.2)
    said: list[str] = []
    options = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "host": "127.0.0.1"}
    with LocalCluster(**options, protocol="tcp", dashboard_address=None) as cluster:

        def waiting(kind: str, seconds: float) -> None:
            said.append(kind)
            assert seconds < 1.0
            if comes and len(said) == 2:
                cluster.scale(1)

        minutes = 0.5 if comes else 0.01
        where = SchedulerSettings(address=cluster.scheduler_address, wait_minutes=minutes)
        if comes:
            with open_cluster(ClusterSettings(where=where), tmp_path, waiting) as client:
                assert client.submit(sum, [1, 2]).result(timeout=20) == 3
        else:
            words = r"^\[cluster\] kind = 'scheduler': no worker has come in 0\.01 minutes; start some with"
            with (
                pytest.raises(LumidError, match=words),
                open_cluster(ClusterSettings(where=where), tmp_path, waiting),
            ):
                pass
    assert len(said) >= 2
    assert set(said) == {"scheduler"}


def test_nothing_of_a_build_here_listens_on_a_public_interface(tmp_path: Path) -> None:
    before = _listening()
    with open_cluster(ClusterSettings(workers=2), tmp_path):
        found = _listening() - before
    assert len({process for process, _, _ in found}) >= 3  # scheduler and two workers: they were looked at
    assert {address for _, address, _ in found} == {"127.0.0.1"}


def test_no_stacks_are_sampled(tmp_path: Path) -> None:
    """The head, a worker that is started here, and one that is joined: with Python 3.11.7 it can lock them up."""
    with open_cluster(ClusterSettings(workers=1), tmp_path) as client:
        assert client.run(_sampling) == {address: [] for address in client.nthreads()}
        assert not [thread.name for thread in threading.enumerate() if thread.name == "Profile"]
    with (
        dask.config.set({"distributed.worker.profile.enabled": True}),
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
    ):
        (worker,) = cluster.workers.values()
        assert worker.periodic_callbacks["profile"].is_running()
        with open_cluster(ClusterSettings(scheduler=cluster.scheduler_address), tmp_path):
            assert not worker.periodic_callbacks["profile"].is_running()


def _sampling(dask_worker: Any) -> list[str]:
    threads = [thread.name for thread in threading.enumerate() if thread.name == "Profile"]
    return threads + [name for name in dask_worker.periodic_callbacks if "profile" in name]


def test_a_scheduler_that_is_gone_is_one_line(tmp_path: Path) -> None:
    """Whatever Dask is asked then; what waits for a task says it by itself."""

    def ask() -> None:
        with open_cluster(ClusterSettings(scheduler=cluster.scheduler_address), tmp_path) as client:
            cluster.close()
            client.sync(client.scheduler.identity)

    with (
        LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster,
        pytest.raises(LumidError, match="the Dask scheduler is gone") as error,
    ):
        ask()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [CommClosedError("in x"), OSError("Timed out trying to connect to tcp://x after 9 s")]
)
def test_no_answer_is_one_line_and_other_errors_are_what_they_are(error: OSError, tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        for raised, wanted in ((error, LumidError), (OSError(28, "full"), OSError)):
            with pytest.raises(wanted), open_cluster(ClusterSettings(scheduler=cluster.scheduler_address), tmp_path):
                raise raised


def test_options_come_before_the_recipe(tmp_path: Path) -> None:
    elsewhere = SchedulerSettings(address="tcp://127.0.0.1:9")
    with open_cluster(ClusterSettings(workers=1, where=elsewhere), tmp_path) as client:
        assert len(client.nthreads()) == 1


def _listening() -> set[tuple[int, str, int]]:
    me = psutil.Process()
    return {
        (process.pid, socket.laddr.ip, socket.laddr.port)
        for process in [me, *me.children(recursive=True)]
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    }


def _certificate(folder: Path) -> dict[str, str]:
    """A self-signed certificate for 127.0.0.1, which is its own authority."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "lumid test")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    local = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
        .add_extension(local, critical=False).add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    paths = SimpleNamespace(cert=folder / "cert.pem", key=folder / "key.pem")
    paths.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, style = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths.key.write_bytes(key.private_bytes(encoding, style, serialization.NoEncryption()))
    return {"tls_ca": str(paths.cert), "tls_cert": str(paths.cert), "tls_key": str(paths.key)}


def _dies(path: Path, times: int) -> int:
    """Kills its process, so often."""
    before = len(path.read_bytes()) if path.exists() else 0
    with path.open("ab") as file:
        file.write(b".")
    if before < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return before


def test_workers_that_die_of_something_else_do_not_end_what_cannot_be_taken_apart(tmp_path: Path) -> None:
    with open_cluster(ClusterSettings(workers=1), tmp_path / "dask") as client:
        ((name, died),) = run_tasks(client, [("packing", _dies, (tmp_path / "died", 4))])
    assert name == "packing"
    assert died >= 4, "Dask itself gives up after three; on a slow machine it may be done once more"


def timed_task(seconds: float) -> tuple[float, float]:
    """When it begins, and when it ends."""
    begun = time.time()
    time.sleep(seconds)
    return begun, time.time()


def _at_once(times: Sequence[tuple[float, float]]) -> int:
    """The most that ran at the same time."""
    return max(sum(begun <= at < ended for begun, ended in times) for at, _ in times)


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8786", "foo", "127.0.0.1:8786", "tcp://127.0.0.1", "tcp://h:port"]
)
def test_what_is_no_address_of_a_scheduler_is_told_at_once(address: str, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="write it as tcp://host:8786"),
        open_cluster(ClusterSettings(address), tmp_path),
    ):
        pass


def test_a_scheduler_by_tls_needs_certificates(tmp_path: Path) -> None:
    with (
        pytest.raises(LumidError, match=r"needs certificates; give tls_ca"),
        open_cluster(ClusterSettings("tls://127.0.0.1:9"), tmp_path),
    ):
        pass


@contextmanager
def _cluster(workers: int) -> Iterator[tuple[LocalCluster, Client]]:
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


def test_a_task_is_handed_out_for_each_place_and_no_more() -> None:
    """Nor while what has ended is looked at. A second one would wait at a busy worker while another has nothing to do."""
    tasks = [(f"b{number}", timed_task, (0.3,)) for number in range(10)]
    with _cluster(2) as (cluster, client):
        held, busy = [], []
        for _ in run_tasks(client, tasks):
            time.sleep(0.05)
            held.append(len(cluster.scheduler.tasks))  # with what has ended and was not looked at yet
            busy += [len(worker.processing) for worker in cluster.scheduler.workers.values()]
        prefixes = set(cluster.scheduler.task_prefixes)
    assert held[:8] == [2] * 8
    assert max(busy) == 1
    assert prefixes == {"timed"}, "Dask counts by what tasks do, however many there are"


def test_tasks_that_nobody_wants_any_more_are_not_running(tmp_path: Path) -> None:
    tasks = [(f"b{number}", timed_task, (1.0 if number else 0.0,)) for number in range(4)]
    watch = TaskWatch(EventLog())
    with _cluster(2) as (cluster, client):
        client.subscribe_topic(watch.topic, watch.heard)
        with closing(run_tasks(client, tasks, watch=watch)) as stream:
            next(stream)
            while watch.running < 2:
                time.sleep(0.01)
        assert watch.running == 0
        deadline = time.monotonic() + 20
        while cluster.scheduler.tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not cluster.scheduler.tasks


def slow_again_task(mark: Path) -> None:
    time.sleep(6.0 if mark.exists() else 0.8)
    mark.touch()


def test_what_was_done_by_a_worker_that_died_is_made_again_while_others_go_on(tmp_path: Path) -> None:
    tasks: list[Task] = [("first", timed_task, (0.4,)), ("lost", slow_again_task, (tmp_path / "mark",))]
    tasks += [(f"b{number}", timed_task, (1.0 if number == 0 else 0.2,)) for number in range(6)]
    with _cluster(3) as (cluster, client):
        stream = run_tasks(client, tasks)
        assert next(stream)[0] == "first"
        time.sleep(1.0)  # the result of the other is there, and nobody has looked at it
        ((_, (holder,)),) = [item for item in client.who_has().items() if name_of(item[0]) == "lost"]
        (nanny,) = [one for one in cluster.workers.values() if one.worker_address == holder]
        os.kill(nanny.pid, signal.SIGKILL)
        while holder in cluster.scheduler.workers:
            time.sleep(0.05)
        time.sleep(0.3)  # until the client has heard of it
        names = [name for name, _ in stream]
    assert sorted(names) == ["b0", "b1", "b2", "b3", "b4", "b5", "lost"]
    assert names[-1] == "lost"


def test_that_no_worker_is_left_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = itertools.chain([1], itertools.repeat(0, 12), itertools.repeat(1))
    monkeypatch.setattr(running, "COUNT_EVERY_S", 0.1)
    monkeypatch.setattr(running, "SAY_EVERY_S", 0.5)
    monkeypatch.setattr(running, "slots", lambda _: next(counted))
    said: list[str] = []
    tasks = [(f"b{number}", timed_task, (0.3,)) for number in range(6)]
    with _cluster(1) as (_, client):
        assert len(list(run_tasks(client, tasks, watch=TaskWatch(EventLog(), said.append)))) == 6
    assert len(said) == 1
    assert said[0].startswith("no worker is left: waiting")


def test_a_worker_that_starts_anew_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = itertools.chain([1], itertools.repeat(0, 3), itertools.repeat(1))
    monkeypatch.setattr(running, "COUNT_EVERY_S", 0.1)
    monkeypatch.setattr(running, "slots", lambda _: next(counted))
    said: list[str] = []
    with _cluster(1) as (_, client):
        tasks = [(f"b{number}", timed_task, (0.3,)) for number in range(4)]
        assert len(list(run_tasks(client, tasks, watch=TaskWatch(EventLog(), said.append)))) == 4
    assert said == []


def test_a_worker_without_lumid_is_named(tmp_path: Path) -> None:
    with LocalCluster(n_workers=0, protocol="tcp", host="127.0.0.1", dashboard_address=None) as cluster:
        hidden = "import sys; sys.modules['lumid'] = None; from distributed.cli.dask_worker import main; main()"
        options = [
            "--no-nanny",
            "--nthreads",
            "1",
            "--no-dashboard",
            "--host",
            "127.0.0.1",
            "--local-directory",
            str(tmp_path),
        ]
        worker = subprocess.Popen(
            [sys.executable, "-c", hidden, cluster.scheduler_address, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )  # fmt: skip
        try:
            with (
                pytest.raises(LumidError, match="a worker cannot be prepared: each needs this version of lumid"),
                open_cluster(ClusterSettings(cluster.scheduler_address), tmp_path),
            ):
                pass
        finally:
            worker.kill()
            worker.wait(30)


def test_workers_that_come_later_are_given_tasks() -> None:
    times: list[tuple[float, float]] = []
    deadline = time.monotonic() + 60

    def tasks() -> Iterator[Task]:
        for number in itertools.count():
            if (times and _at_once(times) == 3) or time.monotonic() > deadline:
                return
            yield f"b{number}", timed_task, (0.5,)

    with _cluster(1) as (cluster, client):
        stream = run_tasks(client, tasks())
        times.append(next(stream)[1])
        cluster.scale(3)
        for _, found in stream:
            times.append(found)  # one by one: the tasks look at them
    assert _at_once(times) == 3


@pytest.mark.parametrize("away_s", [0.0, 4.0])
def test_a_scheduler_that_is_lost_while_tasks_run_is_one_line(tmp_path: Path, away_s: float) -> None:
    """Also when the client has given up looking for it while whoever asked was busy with a result."""
    tasks = [(f"b{number}", timed_task, (0.3,)) for number in range(200)]

    def lose() -> None:
        with open_cluster(ClusterSettings(cluster.scheduler_address), tmp_path) as client:
            client._timeout = 1.0  # after which it gives up
            for number, _ in enumerate(run_tasks(client, tasks)):
                if number == 3:
                    cluster.close()
                    time.sleep(away_s)

    with _cluster(2) as (cluster, _), pytest.raises(LumidError, match="the Dask scheduler is gone"):
        lose()


def test_a_count_that_fails_does_not_end_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection by which workers are counted is another than that by which tasks are given."""
    monkeypatch.setattr(running, "COUNT_EVERY_S", 0.1)
    tasks = [(f"b{number}", timed_task, (0.2,)) for number in range(8)]
    with _cluster(2) as (_, client):
        stream = run_tasks(client, tasks)
        found = [next(stream)]
        monkeypatch.setattr(running, "slots", _fails)
        found += stream
    assert len(found) == 8


def _fails(client: Client) -> int:
    raise CommClosedError("in a test")
