"""Every fault of a server ends in a whole, verified body or in an exact reason."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lumid.pipeline.download import Downloader, Patience, Wanted, retry_after
from lumid.pipeline.recipe import FetchSettings
from lumid.pipeline.reject import Reject
from tests.servers import Fault, Server, status

DATA = random.Random(4).randbytes(300_000)
MD5 = hashlib.md5(DATA).hexdigest()
QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02, retry_after_s=1.0, bytes_per_s=10_000, progress_bytes=1 << 20)


def downloader(patience: Patience = QUICK, **settings: object) -> Downloader:
    values = {"attempts": 3, "timeout_s": 0.4} | settings
    return Downloader(FetchSettings.model_validate(values), patience)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server({"/a": DATA}) as server:
        yield server


def wanted(server: Server, md5: str | None = MD5, **values: object) -> Wanted:
    return Wanted((server.url + "/a",), md5=md5, **values)  # type: ignore[arg-type]


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".verified.json"))


HEALED = [
    status(500),
    status(503),
    status(429),
    status(408),
    Fault("reset", after=100_000),
    Fault("reset", after=0),
    Fault("truncate", after=100_000),
    Fault("truncate", after=0),
    Fault("corrupt"),
    Fault("drip"),
    Fault("drip_head", every_s=0.1),
    Fault("cut_head"),
    Fault("silent"),
    Fault("page"),
    Fault("other"),
]


@pytest.mark.parametrize("fault", HEALED, ids=lambda fault: f"{fault.kind}-{fault.status}-{fault.after}")
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
@pytest.mark.parametrize("pinned", [True, False], ids=["md5", "size"])
def test_a_fault_is_healed(fault: Fault, chunked: bool, pinned: bool, tmp_path: Path) -> None:
    """Once it goes wrong, then not: the whole body, and nothing left beside it."""
    if not pinned and fault.kind in ("corrupt", "other"):
        pytest.skip("a wrong byte cannot be found without a checksum")
    with Server({"/a": DATA}, {"/a": [fault]}, chunked=chunked) as server:
        want = wanted(server) if pinned else wanted(server, None, bytes=len(DATA))
        path = downloader().file(want, tmp_path / "a")
        assert path == tmp_path / "a"
        assert path.read_bytes() == DATA
        assert left_over(tmp_path) == ["a"]
        assert len(server.log) == 2


LASTING = [
    (status(500), 3, "HTTP 500"),
    (status(404), 1, "HTTP 404"),
    (status(403), 1, "HTTP 403"),
    (Fault("silent"), 3, "no answer in 0.4 s"),
    (Fault("corrupt"), 3, "MD5 does not match"),
    (Fault("other"), 3, "MD5 does not match"),
    (Fault("page"), 3, "a web page in place of the file"),
    (Fault("reset", after=0), 3, "the connection broke off"),
    (Fault("truncate", after=0), 3, "the connection broke off"),
    (Fault("cut_head"), 3, "an empty answer"),
    (Fault("drip_head", every_s=0.1), 3, "no answer in 0.4 s"),
    (Fault("redirect", status=302, headers={"Location": "/a"}), 3, "too many redirects"),
]


@pytest.mark.parametrize(("fault", "requests", "detail"), LASTING, ids=lambda value: getattr(value, "kind", None))
def test_a_lasting_fault_is_a_reason(fault: Fault, requests: int, detail: str, tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"*": [fault]}) as server:
        outcome = downloader().file(wanted(server), tmp_path / "a")
        assert outcome == Reject("fetch", "fetch_failed", detail)
        assert fault.kind == "redirect" or len(server.log) == requests
    assert "DOE" not in outcome.message
    assert not (tmp_path / "a").exists()


def test_a_drip_ends_and_says_how_slow_it_was(tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"*": [Fault("drip")]}) as server:
        begun = time.monotonic()
        outcome = downloader().file(wanted(server), tmp_path / "a")
        assert isinstance(outcome, Reject)
        assert outcome.detail.startswith("too slow: ")
        assert time.monotonic() - begun < 5


def test_nobody_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a"
        assert downloader().bytes(Wanted((url,))) == Reject("fetch", "fetch_failed", "cannot connect")
    for odd in ("http://", "nothing", "http://[::1", "file:///etc/passwd", "http:///a", "http://a:b/"):
        assert downloader().bytes(Wanted((odd,))) == Reject("fetch", "fetch_failed", "not an address"), odd


def test_the_rest_is_asked_for_not_the_whole(tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"/a": [Fault("reset", after=100_000), Fault("truncate", after=50_000)]}) as server:
        assert downloader().file(wanted(server), tmp_path / "a") == tmp_path / "a"
        first, second, third = (request.headers for request in server.log)
    assert "Range" not in first
    begin, next_begin = (int(headers["Range"][6:-1]) for headers in (second, third))
    assert 0 < begin <= 100_000
    assert next_begin == begin + 50_000
    assert second["If-Range"] == third["If-Range"] == f'"{MD5}"'
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize("pinned", [True, False])
def test_a_later_run_goes_on(pinned: bool, tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"/a": [Fault("truncate", after=200_000)]}) as server:
        want = wanted(server, MD5 if pinned else None)
        assert isinstance(downloader(attempts=1).file(want, tmp_path / "a"), Reject)
        assert left_over(tmp_path) == [".a.part", ".a.part.json"]
        assert downloader(attempts=1).file(want, tmp_path / "a") == tmp_path / "a"
        assert server.log[1].headers["Range"] == "bytes=200000-"
    assert (tmp_path / "a").read_bytes() == DATA
    assert left_over(tmp_path) == ["a"]


def test_a_body_that_changed_between_runs_is_not_glued(tmp_path: Path) -> None:
    """Without an MD5 only the ETag tells: If-Range makes the server give the new body whole."""
    with Server({"/a": DATA}, {"/a": [Fault("truncate", after=200_000)]}) as server:
        assert isinstance(downloader(attempts=1).file(wanted(server, None), tmp_path / "a"), Reject)
        server.files["/a"] = DATA[::-1]
        assert downloader(attempts=1).file(wanted(server, None), tmp_path / "a") == tmp_path / "a"
        assert "If-Range" in server.log[1].headers
    assert (tmp_path / "a").read_bytes() == DATA[::-1]


def test_without_an_etag_or_md5_a_part_is_not_resumed(tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"/a": [Fault("truncate", after=200_000)]}, etags=False) as server:
        assert downloader().file(wanted(server, None), tmp_path / "a") == tmp_path / "a"
        assert [request.headers.get("Range") for request in server.log] == [None, None]
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_server_that_ignores_range_begins_anew(tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"/a": [Fault("truncate", after=200_000)]}, ranges=False) as server:
        assert downloader().file(wanted(server), tmp_path / "a") == tmp_path / "a"
        assert server.log[1].headers["Range"] == "bytes=200000-"
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_mirror_goes_on_where_the_first_broke_off(tmp_path: Path) -> None:
    broken = Fault("truncate", after=200_000)
    with Server({"/a": DATA}, {"/a": [broken, status(404)]}) as first, Server({"/b": DATA}) as second:
        want = Wanted((first.url + "/a", second.url + "/b"), md5=MD5)
        assert downloader().file(want, tmp_path / "a") == tmp_path / "a"
        assert [request.headers.get("Range") for request in second.log] == ["bytes=200000-"]
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_mirror_that_is_gone_does_not_cost_what_is_there(tmp_path: Path) -> None:
    """Without an MD5 only the server that a part is from can go on with it; the part waits for its turn."""
    with Server({}) as gone, Server({"/a": DATA}, {"/a": [Fault("truncate", after=200_000)]}) as server:
        want = Wanted((gone.url + "/a", server.url + "/a"))
        assert isinstance(downloader(attempts=1).file(want, tmp_path / "a"), Reject)
        assert downloader(attempts=1).file(want, tmp_path / "a") == tmp_path / "a"
        assert [request.headers.get("Range") for request in gone.log] == [None, None]
        assert [request.headers.get("Range") for request in server.log] == [None, "bytes=200000-"]
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_killed_process_leaves_a_part_that_the_next_goes_on_with(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from lumid.pipeline.download import Downloader, Wanted
from lumid.pipeline.recipe import FetchSettings
Downloader(FetchSettings()).file(Wanted((sys.argv[1],)), Path(sys.argv[2]))
"""
    with Server({"/a": DATA}, {"/a": [Fault("drip", step=20_000, every_s=0.1)]}) as server:
        process = subprocess.Popen([sys.executable, "-c", code, server.url + "/a", str(tmp_path / "a")])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (
            not (tmp_path / ".a.part").exists() or (tmp_path / ".a.part").stat().st_size < 60_000
        ):
            time.sleep(0.01)
        process.kill()
        process.wait()
        begin = (tmp_path / ".a.part").stat().st_size
        assert 60_000 <= begin < len(DATA)
        assert downloader().file(wanted(server, None), tmp_path / "a") == tmp_path / "a"
        assert server.log[1].headers["Range"] == f"bytes={begin}-"
    assert (tmp_path / "a").read_bytes() == DATA
    assert left_over(tmp_path) == ["a"]


def test_mirrors_are_tried_in_order(tmp_path: Path) -> None:
    with Server({}) as empty, Server({"/a": DATA}, {"*": [status(500)]}) as ill, Server({"/a": DATA}) as well:
        urls = tuple(server.url + "/a" for server in (empty, ill, well))
        assert downloader().bytes(Wanted(urls, md5=MD5)) == DATA
        assert [len(server.log) for server in (empty, ill, well)] == [1, 3, 1]
        assert downloader().bytes(Wanted(urls[:2])) == Reject("fetch", "fetch_failed", "HTTP 500")
        assert downloader().bytes(Wanted(urls[1::-1])) == Reject("fetch", "fetch_failed", "HTTP 404")
    assert downloader().bytes(Wanted(())) == Reject("fetch", "fetch_failed", "no address")


def test_a_part_left_by_another_body_is_thrown_away(tmp_path: Path) -> None:
    """The MD5 of the whole finds it; the next attempt begins anew."""
    (tmp_path / ".a.part").write_bytes(b"x" * 1000)
    with Server({"/a": DATA}) as server:
        assert downloader().file(wanted(server), tmp_path / "a") == tmp_path / "a"
        assert [request.headers.get("Range") for request in server.log] == ["bytes=1000-", None]
    assert (tmp_path / "a").read_bytes() == DATA


@pytest.mark.parametrize("size", [len(DATA), len(DATA) + 10])
def test_a_part_as_long_as_the_body_or_longer(size: int, tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes((DATA + b"x" * 10)[:size])
    with Server({"/a": DATA}) as server:
        assert downloader().file(wanted(server), tmp_path / "a") == tmp_path / "a"
    assert (tmp_path / "a").read_bytes() == DATA


def test_a_whole_part_of_known_size_needs_no_request(tmp_path: Path) -> None:
    (tmp_path / ".a.part").write_bytes(DATA)
    with Server({"/a": DATA}) as server:
        assert downloader().file(wanted(server, bytes=len(DATA)), tmp_path / "a") == tmp_path / "a"
        assert server.log == []


def test_what_is_verified_is_not_fetched_or_hashed_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with Server({"/a": DATA}) as server:
        for _ in range(3):
            assert downloader().file(wanted(server), path) == path
        assert len(server.log) == 1
        # what is remembered is believed for as long as size and time of change are the same
        before = path.stat()
        path.write_bytes(DATA[::-1])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert downloader().file(wanted(server), path) == path
        assert len(server.log) == 1
        path.write_bytes(DATA[::-1])
        assert downloader().file(wanted(server), path) == path
        assert len(server.log) == 2
    assert path.read_bytes() == DATA


def test_a_file_that_the_user_brought_is_verified_once(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    want = Wanted((), md5=MD5)
    assert downloader().file(want, path) == path
    memory = json.loads((tmp_path / ".a.verified.json").read_text())
    assert memory == {"bytes": len(DATA), "mtime_ns": path.stat().st_mtime_ns, "md5": MD5}
    path.write_bytes(DATA[:-1])
    assert downloader().file(want, path) == Reject("fetch", "fetch_failed", "no address")
    assert path.read_bytes() == DATA[:-1], "a user's file stays until a verified one takes its place"


def test_offline_asks_nobody(server: Server, tmp_path: Path) -> None:
    offline = downloader(offline=True)
    assert offline.file(wanted(server), tmp_path / "a") == Reject("fetch", "fetch_failed", "offline, and not there yet")
    assert offline.bytes(wanted(server)) == Reject("fetch", "fetch_failed", "offline")
    assert server.log == []
    (tmp_path / "a").write_bytes(DATA)
    assert offline.file(wanted(server), tmp_path / "a") == tmp_path / "a"


@pytest.mark.parametrize("answer", [429, 503])
def test_retry_after_is_respected_up_to_the_cap(answer: int) -> None:
    with Server({"/a": DATA}, {"/a": [status(answer, Retry_After="1"), status(answer, Retry_After="9000")]}) as server:
        assert downloader(Patience(0.01, 0.02, retry_after_s=1.2)).bytes(wanted(server)) == DATA
        first, second, third = (request.at_s for request in server.log)
    assert second - first >= 1.0
    assert 1.2 <= third - second < 5


def test_retry_after_as_a_date_is_respected() -> None:
    due = datetime.fromtimestamp(int(time.time()) + 2, UTC)
    date = due.strftime("%a, %d %b %Y %H:%M:%S GMT")
    with Server({"/a": DATA}, {"/a": [status(429, Retry_After=date)]}) as server:
        assert downloader(Patience(0.01, 0.02, retry_after_s=10)).bytes(wanted(server)) == DATA
        assert time.time() >= due.timestamp()


NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("Fri, 02 Jan 2026 12:00:30 GMT", 30.0),
        ("Fri, 02 Jan 2026 11:00:00 GMT", 0.0),
        ("Friday, 02-Jan-26 12:00:30 GMT", 30.0),
        ("Fri Jan  2 12:00:30 2026", 30.0),
    ],
)
def test_retry_after_values(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOON) == seconds


def test_waits_double_and_are_spread() -> None:
    patience = Patience(first_wait_s=1, longest_wait_s=8, retry_after_s=30)
    for failures, span in [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (9, 8)]:
        waits = {patience.pause_s(failures, None) for _ in range(200)}
        assert span / 2 <= min(waits) < span * 0.6
        assert span * 0.9 < max(waits) <= span
    assert patience.pause_s(1, 20.0) == 20
    assert patience.pause_s(1, 100.0) == 30
    assert patience.pause_s(4, 1.0) >= 4


def test_attempts_that_bring_much_are_not_counted(tmp_path: Path) -> None:
    """An archive that breaks off at every 30 kB still arrives; one that breaks off at once does not."""
    patience = Patience(0.001, 0.002, progress_bytes=20_000)
    breaks = [Fault("truncate", after=30_000)] * 9
    with Server({"/a": DATA}, {"/a": list(breaks)}) as server:
        assert downloader(patience, attempts=2).file(wanted(server), tmp_path / "a") == tmp_path / "a"
        assert len(server.log) == 10
        assert server.log[-1].headers["Range"] == "bytes=270000-"
    with Server({"/a": DATA}, {"/a": list(breaks)}, ranges=False) as server:
        outcome = downloader(patience, attempts=2).file(wanted(server), tmp_path / "b")
        assert outcome == Reject("fetch", "fetch_failed", "the connection broke off")
        assert len(server.log) == 3, "beginning anew is no progress"


def test_a_host_is_asked_so_many_things_at_once(tmp_path: Path) -> None:
    slow = Fault("drip", step=60_000, every_s=0.02)
    with Server({"/a": DATA}, {"/a": [slow] * 24}) as server, ThreadPoolExecutor(12) as pool:
        fetch = downloader(requests=3)
        assert all(body == DATA for body in pool.map(lambda _: fetch.bytes(wanted(server)), range(24)))
        assert server.busiest <= 3
        server.busiest = 0
        server.faults["/a"] = [slow] * 12
        fetch = downloader(requests=12)
        list(pool.map(lambda _: fetch.bytes(wanted(server)), range(12)))
        assert server.busiest > 3


def test_two_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    with Server({"/a": DATA}, {"/a": [Fault("drip", step=60_000, every_s=0.05)] * 8}) as server:
        with ThreadPoolExecutor(8) as pool:
            paths = list(pool.map(lambda _: downloader().file(wanted(server), tmp_path / "a"), range(8)))
        assert set(paths) == {tmp_path / "a"}
        assert len(server.log) == 1
    assert left_over(tmp_path) == ["a"]


def test_sizes_are_verified() -> None:
    with Server({"/a": DATA}) as server:
        short = downloader().bytes(wanted(server, None, bytes=len(DATA) + 1))
        assert short == Reject("fetch", "fetch_failed", f"{len(DATA)} bytes, {len(DATA) + 1} expected")
        server.chunked = True
        short = downloader().bytes(wanted(server, None, bytes=len(DATA) + 1))
        assert short == Reject("fetch", "fetch_failed", f"ends after {len(DATA)} of {len(DATA) + 1} bytes")
        long = downloader().bytes(wanted(server, None, bytes=len(DATA) - 1))
        assert long == Reject("fetch", "fetch_failed", f"larger than {len(DATA) - 1} bytes")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_without_end_ends(chunked: bool) -> None:
    with Server({"/a": DATA}, chunked=chunked) as server:
        outcome = downloader().bytes(wanted(server, None, max_bytes=1000))
        assert outcome == Reject("fetch", "fetch_failed", "larger than 1000 bytes")
        assert len(server.log) == 1


def test_an_empty_body_is_a_body() -> None:
    with Server({"/a": b""}) as server:
        assert downloader().bytes(wanted(server, hashlib.md5(b"").hexdigest())) == b""
        assert downloader().bytes(wanted(server, None)) == b""


def test_forms_are_posted_and_redirects_followed() -> None:
    def echo(request: object) -> bytes:
        return json.dumps(dict(request.form)).encode()  # type: ignore[attr-defined]

    moved = Fault("redirect", status=302, headers={"Location": "/a"})
    with Server({"/echo": echo, "/a": DATA, "/old": b""}, {"/old": [moved]}) as server:
        answer = downloader().bytes(Wanted((server.url + "/echo",), form={"list": "1.2,3&4"}))
        assert answer == b'{"list": "1.2,3&4"}'
        assert downloader().bytes(Wanted((server.url + "/old",), md5=MD5)) == DATA


def test_a_full_disk_is_said_so(server: Server, tmp_path: Path) -> None:
    """/dev/full stands for it: what it refuses is the disk's trouble, not the network's."""
    with Path("/dev/full").open("r+b", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        downloader().into(wanted(server), _Full(full.fileno()))


class _Full:
    """A file that is empty and cannot be written to."""

    def __init__(self, number: int) -> None:
        self.number = number

    def seek(self, _: int) -> int:
        return 0

    def truncate(self) -> int:
        return 0

    def read(self, _: int) -> bytes:
        return b""

    def write(self, data: bytes) -> int:
        return os.write(self.number, data)


def test_an_md5_is_spelt_in_one_way() -> None:
    with pytest.raises(ValueError, match="lower-case"):
        Wanted((), md5=MD5.upper())


def test_no_thread_stays_behind(server: Server) -> None:
    before = threading.active_count()
    for _ in range(20):
        downloader().bytes(wanted(server))
    time.sleep(0.1)
    assert threading.active_count() <= before + 3, "timers of requests that were answered are cancelled"


@pytest.mark.parametrize("seed", range(12))
def test_random_faults_never_give_a_wrong_byte(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    kinds = [
        Fault("reset", after=rng.randrange(len(DATA))),
        Fault("truncate", after=rng.randrange(len(DATA))),
        Fault("corrupt"),
        status(500),
        Fault("page"),
        Fault("other"),
        Fault("none"),
    ]
    faults = [rng.choice(kinds) for _ in range(6)]
    with Server({"/a": DATA}, {"/a": faults}, chunked=seed % 2 == 1, ranges=seed % 3 != 0) as server:
        for _ in range(4):  # runs
            outcome = downloader(attempts=2).file(wanted(server), tmp_path / "a")
            if not isinstance(outcome, Reject):
                assert outcome.read_bytes() == DATA
                return
            assert not (tmp_path / "a").exists()
        pytest.fail("six faults outlast four runs of two attempts")
