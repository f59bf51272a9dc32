"""Every fault of the IDC's servers ends with every byte right, or with an exact reject per object or series."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from lumid.pipeline.download import Patience
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Provenance, Series
from lumid.pipeline.sources import idc as idc_module
from lumid.pipeline.sources.idc import IdcSource
from tests.dicom import TEST_FILES, as_bytes, gradient, image
from tests.fake_idc import BUCKET, MIRROR, Contents, FakeIdc, at_listing, at_object, drawn, fake_idc
from tests.servers import Fault, Request, Server, status

QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02, retry_after_s=5.0, bytes_per_s=50_000, progress_bytes=1 << 30)
REAL = {
    f"{number:08x}.dcm": (TEST_FILES / name).read_bytes()
    for number, name in enumerate(("CT_small.dcm", "J2K_pixelrep_mismatch.dcm", "examples_palette.dcm"))
}
ONE: Contents = {"a1b2": REAL}
VICTIM = "00000001.dcm"
HIT = at_object("a1b2", VICTIM)
SHORT_S = 0.8
"""A timeout for what is meant to run into it."""


@contextmanager
def source_of(fake: FakeIdc, **settings: object) -> Iterator[IdcSource]:
    source = IdcSource(fake.settings(**settings), QUICK)
    try:
        yield source
    finally:
        source.close()


def read(source: IdcSource, series: list[Series]) -> dict[str, bytes | Reject]:
    """What comes of the series, by source id; each once."""
    source.prefetch(series)
    blobs = [blob for one in series for blob in source.blobs(one)]
    found = {blob.ref.source_id: blob.data for blob in blobs}
    assert len(found) == len(blobs)
    assert sum(blob.objects for blob in blobs) == sum(one.objects or 0 for one in series)
    return found


def whole(contents: Contents) -> dict[str, bytes]:
    return {f"{uuid}/{name}": data for uuid, objects in contents.items() for name, data in objects.items()}


def until(met: Callable[[], bool], seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not met() and time.monotonic() < end:
        time.sleep(0.01)
    return met()


def readers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("lumid-read")}


def name_of(value: object) -> str | None:
    return f"{value.kind}-{value.status}" if isinstance(value, Fault) else None


# ---- an object


ONCE = [
    status(500),
    status(503, Retry_After="0"),
    status(429, Retry_After="0"),
    status(408),
    Fault("reset", after=20_000),
    Fault("reset", after=0),
    Fault("truncate", after=20_000),
    Fault("corrupt"),
    Fault("drip", step=10),
    Fault("drip_head"),
    Fault("cut_head"),
    Fault("silent"),
    Fault("page"),
    Fault("other"),
]
HURRIED = ("drip", "drip_head", "silent")


def timeout_for(fault: Fault) -> float:
    return SHORT_S if fault.kind in HURRIED else 20.0


@pytest.mark.parametrize("fault", ONCE, ids=name_of)
def test_an_object_that_fails_once_arrives(fault: Fault) -> None:
    with fake_idc(ONE, faults={HIT: [fault]}) as fake, source_of(fake, timeout_s=timeout_for(fault)) as source:
        assert read(source, fake.pinned()) == whole(ONE)
        assert len(fake.first.requests(HIT)) == 2
        assert fake.deliveries() == dict.fromkeys(whole(ONE), 1)


LASTING = [
    (status(500), 2, "HTTP 500"),
    (status(503, Retry_After="0"), 2, "HTTP 503"),
    (status(429, Retry_After="0"), 2, "HTTP 429"),
    (status(404), 1, "HTTP 404"),
    (status(403), 1, "HTTP 403"),
    (Fault("reset", after=0), 2, "the connection broke off"),
    (Fault("truncate", after=10), 2, "the connection broke off"),
    (Fault("corrupt"), 2, "MD5 does not match"),
    (Fault("drip", step=10), 2, "too slow: "),
    (Fault("cut_head"), 2, "an empty answer"),
    (Fault("silent"), 2, f"no answer in {SHORT_S:g} s"),
    (Fault("page"), 2, "a web page in place of the file"),
    (Fault("other"), 2, "MD5 does not match"),
]


@pytest.mark.parametrize(("fault", "requests", "detail"), LASTING, ids=name_of)
def test_an_object_that_always_fails_is_one_reject(fault: Fault, requests: int, detail: str) -> None:
    with (
        fake_idc(ONE, faults={HIT: fault}) as fake,
        source_of(fake, attempts=2, timeout_s=timeout_for(fault)) as source,
    ):
        found = read(source, fake.pinned())
        lost = found.pop(f"a1b2/{VICTIM}")
        assert isinstance(lost, Reject)
        assert (lost.stage, lost.code) == ("fetch", "fetch_failed")
        assert lost.detail.startswith(detail)
        assert lost.detail == detail or fault.kind == "drip"
        assert "DOE" not in lost.message
        assert found == {key: data for key, data in whole(ONE).items() if key in found}
        assert len(found) == 2
        assert len(fake.first.requests(HIT)) == requests


@pytest.mark.parametrize(
    ("fault", "requests"), [row[:2] for row in LASTING if row[0].kind not in ("drip", "other")], ids=name_of
)
def test_the_mirror_gives_what_the_first_does_not(fault: Fault, requests: int) -> None:
    with (
        fake_idc(ONE, faults={HIT: fault}, mirror=ONE) as fake,
        source_of(fake, attempts=2, timeout_s=timeout_for(fault)) as source,
    ):
        assert read(source, fake.pinned()) == whole(ONE)
        assert fake.mirror is not None
        assert len(fake.first.requests(HIT)) == requests
        assert [request.path for request in fake.mirror.log] == [at_object("a1b2", VICTIM, MIRROR)]
        assert fake.deliveries() == dict.fromkeys(whole(ONE), 1)


@pytest.mark.parametrize(
    ("fault", "detail"), [(status(500), "HTTP 500"), (status(404), "HTTP 404"), (Fault("corrupt"), "MD5 does not match"),
                          (Fault("cut_head"), "the connection broke off"), (Fault("page"), "26 bytes, 138518 expected"),
                          (Fault("silent"), f"no answer in {SHORT_S:g} s")], ids=name_of,
)  # fmt: skip
def test_a_single_attempt_is_one_request_and_has_our_words_too(fault: Fault, detail: str) -> None:
    with (
        fake_idc(ONE, faults={HIT: fault}) as fake,
        source_of(fake, attempts=1, timeout_s=timeout_for(fault)) as source,
    ):
        assert read(source, fake.pinned())[f"a1b2/{VICTIM}"] == Reject("fetch", "fetch_failed", detail)
        assert len(fake.first.requests(HIT)) == 1


def test_the_rest_of_a_broken_body_is_asked_for() -> None:
    broken = Fault("truncate", after=50_000)
    with fake_idc(ONE, faults={HIT: [broken, broken]}) as fake, source_of(fake, attempts=3) as source:
        assert read(source, fake.pinned()) == whole(ONE)
        ranges = [request.headers.get("Range") for request in fake.first.requests(HIT)]
        assert ranges == [None, None, "bytes=50000-"]


@pytest.mark.parametrize("code", [503, 429])
def test_retry_after_is_kept(code: int) -> None:
    """obstore does not show the header of the first refusal; from then on the host is asked in the way that sees it."""
    busy = status(code, Retry_After="1")
    other = at_object("a1b2", "00000002.dcm")
    patience = Patience(first_wait_s=0.01, longest_wait_s=30.0)
    with fake_idc(ONE, faults={HIT: [busy, busy], other: [busy]}) as fake:
        source = IdcSource(fake.settings(attempts=3, requests=1), patience)
        assert read(source, fake.pinned()) == whole(ONE)
        source.close()
        times = [request.at_s for request in fake.first.requests(HIT)]
        assert len(times) == 3
        assert times[2] - times[1] >= 1.0
        begun, again = (request.at_s for request in fake.first.requests(other))
        assert again - begun >= 1.0


# ---- a listing


LISTING_ONCE = [
    status(500),
    status(503, Retry_After="0"),
    Fault("reset", after=100),
    Fault("truncate", after=100),
    Fault("cut_head"),
    Fault("silent"),
    Fault("page"),
    Fault("garbled"),
    Fault("fewer"),
]


@pytest.mark.parametrize("fault", LISTING_ONCE, ids=name_of)
def test_a_listing_that_fails_once_is_asked_for_again(fault: Fault) -> None:
    place = at_listing("a1b2")
    with fake_idc(ONE, faults={place: [fault]}) as fake, source_of(fake, timeout_s=timeout_for(fault)) as source:
        assert read(source, fake.pinned()) == whole(ONE)
        assert len(fake.first.requests(place)) == 2


LISTING_LASTING = [
    (status(500), 2, "listing: HTTP 500"),
    (status(503, Retry_After="0"), 2, "listing: HTTP 503"),
    (status(404), 1, "listing: no such bucket"),
    (status(403), 1, "listing: access denied"),
    (status(401), 1, "listing: access denied"),
    (Fault("reset", after=100), 2, "listing: the connection broke off"),
    (Fault("cut_head"), 2, "listing: the connection broke off"),
    (Fault("silent"), 2, f"listing: no answer in {SHORT_S:g} s"),
    (Fault("garbled"), 2, "listing: not the answer of a bucket"),
    (Fault("page"), 2, "no objects listed"),
    (Fault("fewer"), 2, "2 objects listed, 3 planned"),
]


@pytest.mark.parametrize(("fault", "requests", "detail"), LISTING_LASTING, ids=name_of)
@pytest.mark.parametrize("mirrored", [False, True], ids=["alone", "mirrored"])
def test_a_listing_that_always_fails_is_one_reject_or_the_mirrors(
    mirrored: bool, fault: Fault, requests: int, detail: str
) -> None:
    two: Contents = {"a1b2": REAL, "c3d4": {"x.dcm": as_bytes(image(gradient(), SeriesInstanceUID="1.2.77"))}}
    place = at_listing("a1b2")
    with (
        fake_idc(two, faults={place: fault}, mirror=two if mirrored else None) as fake,
        source_of(fake, attempts=2, timeout_s=timeout_for(fault)) as source,
    ):
        series = fake.pinned()
        found = read(source, series)
        assert len(fake.first.requests(place)) == requests
        if mirrored:
            assert found == whole(two)
            assert not fake.first.requests(HIT), (
                "the mirror that listed a series is the first to be asked for its objects"
            )
        else:
            assert found == {"a1b2": Reject("fetch", "fetch_failed", detail), **whole({"c3d4": two["c3d4"]})}
            (lost,) = source.blobs(next(one for one in series if one.location == "a1b2"))
            assert lost.objects == 3


ENTRY = "<Contents><Key>{key}</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><ETag>&quot;x&quot;</ETag><Size>9</Size></Contents>"
ENDLESS = "<ListBucketResult><Name>b</Name><IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>{}</ListBucketResult>"


@pytest.mark.parametrize(
    ("keys", "detail"), [(500, "more than 1003 objects listed, 3 planned"), (0, "listing: no answer in 0.3 s")]
)
def test_an_endless_listing_is_not_followed_for_ever(keys: int, detail: str) -> None:
    pages = Counter[str]()

    def page(request: Request) -> bytes:
        pages["all"] += 1
        return ENDLESS.format("".join(ENTRY.format(key=f"u/{pages['all']}-{key}") for key in range(keys))).encode()

    with Server({f"/{BUCKET}": page}) as server:
        fake = FakeIdc(server, None, {})
        one = Series(
            "0" * 16, Provenance("c", "idc", None, None, None), 3, 1, location="u", urls=(f"s3://{BUCKET}/u/",)
        )
        with source_of(fake, attempts=1, timeout_s=0.3) as source:
            (blob,) = source.blobs(one)
        assert (blob.data, blob.objects) == (Reject("fetch", "fetch_failed", detail), 3)
        assert keys == 0 or pages["all"] <= 5


# ---- slow, large, silent


def test_what_is_slow_and_goes_on_arrives() -> None:
    """Longer than the timeout: what is small is begun anew once, what is large is asked for in the patient way at once."""
    data = random.Random(4).randbytes(idc_module.QUICK_BYTES + 1)
    contents = {"slow": {"large.dcm": data, "small.dcm": data[:200_000]}}
    faults = {
        at_object("slow", "large.dcm"): Fault("drip", step=1 << 18, every_s=0.05),
        at_object("slow", "small.dcm"): Fault("drip", step=5_000, every_s=0.05),
    }
    with fake_idc(contents, faults=faults) as fake, source_of(fake, timeout_s=SHORT_S) as source:
        assert read(source, fake.pinned()) == whole(contents)
        assert {path: len(fake.first.requests(path)) for path in faults} == dict(zip(faults, (1, 2), strict=True))


def test_a_server_that_never_answers_is_left_in_time() -> None:
    with fake_idc(ONE, mirror=ONE) as fake, source_of(fake, attempts=1, timeout_s=SHORT_S) as source:
        fake.first.faults["*"] = Fault("silent")
        begun = time.monotonic()
        assert read(source, fake.pinned()) == whole(ONE)
        assert time.monotonic() - begun < 10 * SHORT_S
        assert len(fake.first.log) == 1, "the mirror that listed the series is asked for all of it"


@pytest.mark.parametrize(
    ("place", "stuck", "requests"),
    [
        (HIT, Fault("silent"), 1),  # in the quick way
        (HIT, [status(500), *[Fault("silent")] * 9], 2),  # in the careful one
        (HIT, status(503, Retry_After="60"), 2),
        (at_listing("a1b2"), Fault("silent"), 1),
        (at_listing("a1b2"), status(500), 1),
    ],
    ids=["object-silent", "object-silent-again", "object-waits", "listing-silent", "listing-waits"],
)
def test_closing_waits_for_nobody(place: str, stuck: list[Fault] | Fault, requests: int) -> None:
    first_wait_s = 30.0 if place == at_listing("a1b2") else 0.01
    there = readers()
    with fake_idc(ONE, faults={place: stuck}) as fake:
        source = IdcSource(fake.settings(attempts=9), Patience(first_wait_s, 30.0, 300.0))
        source.prefetch(fake.pinned())
        assert until(lambda: len(fake.first.requests(place)) == requests)
        begun = time.monotonic()
        source.close()
        assert time.monotonic() - begun < 5.0
        if isinstance(stuck, Fault):  # a plain request cannot be ended: it has its timeout
            assert until(lambda: readers() <= there, 5.0)
        fake.first.faults.clear()
        assert read(source, fake.pinned()) == whole(ONE), "a closed source can be read again"
        source.close()


# ---- reading ahead


def many(series: int, objects: int, size: int = 48) -> dict[str, dict[str, bytes]]:
    return {
        f"{one:04x}": {
            f"{number:02x}.dcm": as_bytes(
                image(gradient(size, size, high=300 + number), SeriesInstanceUID=f"1.2.{one}", SOPInstanceUID=f"1.3.{one}.{number}")
            )
            for number in range(objects)
        }
        for one in range(series)
    }  # fmt: skip


def test_listings_and_objects_arrive_before_anybody_asks() -> None:
    contents = many(6, 3)
    with fake_idc(contents) as fake, source_of(fake, requests=4) as source:
        series = fake.pinned()
        fake.first.faults[at_listing(series[0].location)] = [Fault("silent")]
        slow = IdcSource(fake.settings(timeout_s=SHORT_S), QUICK)
        begun = time.monotonic()
        slow.prefetch(series)
        assert time.monotonic() - begun < SHORT_S / 2, "prefetch waits for no answer"
        others = [at_listing(one.location) for one in series[1:]]
        assert until(lambda: all(fake.first.requests(place) for place in others))
        slow.close()

        source.prefetch(series)
        assert until(lambda: all(count >= 1 for count in fake.deliveries().values()))
        counts = fake.deliveries()
        assert read(source, series) == whole(contents)
        assert fake.deliveries() == counts, "what was read ahead is not read again"


def test_what_is_read_ahead_is_bounded() -> None:
    contents = many(3, 4)
    size = max(map(len, whole(contents).values()))
    with fake_idc(contents) as fake, source_of(fake, requests=8, ahead_mb=2.5 * size / 1e6) as source:
        source.prefetch(fake.pinned())
        assert until(lambda: sum(fake.deliveries().values()) == 2)
        time.sleep(0.3)
        assert sum(fake.deliveries().values()) == 2
        assert read(source, fake.pinned()) == whole(contents)


def test_two_sources_at_once_share_the_turns_at_a_host() -> None:
    """One batch is read while the next arrives: from two threads, and never more requests than one worker may have."""
    left, right = many(3, 5), {f"f{uuid}": objects for uuid, objects in many(3, 5).items()}
    with fake_idc(left | right, pick=lambda _: Fault("drip", step=3000, every_s=0.01)) as fake:
        series = fake.pinned()
        halves = [[one for one in series if one.location in side] for side in (left, right)]
        found: list[dict[str, bytes | Reject]] = [{}, {}]

        def consume(number: int) -> None:
            with source_of(fake, requests=4) as source:
                found[number] = read(source, halves[number])

        threads = [threading.Thread(target=consume, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(50)
        assert found == [whole(left), whole(right)]
        # a server notices the end of a request a little after its client has begun the next
        assert 3 <= fake.first.busiest <= 6


def test_a_series_is_read_again_in_part_and_in_any_order() -> None:
    contents = many(3, 4)
    with fake_idc(contents) as fake, source_of(fake, requests=2) as source:
        series = fake.pinned()
        source.prefetch(series)
        backwards = {blob.ref.source_id: blob.data for one in reversed(series) for blob in source.blobs(one)}
        assert backwards == whole(contents)
        some = frozenset(list(whole(contents))[1::3])
        again = {blob.ref.source_id: blob.data for one in series for blob in source.blobs(one, some)}
        assert again == {key: data for key, data in whole(contents).items() if key in some}


# ---- everything at once


RANDOM_OBJECT = [
    status(500),
    status(503, Retry_After="0"),
    status(429, Retry_After="0"),
    Fault("reset", after=1500),
    Fault("truncate", after=1500),
    Fault("corrupt"),
    Fault("other"),
    Fault("drip", step=100),
    Fault("cut_head"),
    Fault("silent"),
    Fault("page"),
]
RANDOM_LISTING = [status(500), status(503), Fault("reset", after=200), Fault("cut_head"), Fault("page"), Fault("fewer")]
REASONS = {
    "HTTP 500", "HTTP 503", "HTTP 429", "the connection broke off", "MD5 does not match", "an empty answer",
    "no answer in 0.6 s", "a web page in place of the file", "no objects listed", "7 objects listed, 8 planned",
    "listing: HTTP 500", "listing: HTTP 503", "listing: the connection broke off", "listing: no answer in 0.6 s",
}  # fmt: skip


@pytest.mark.parametrize(("seed", "attempts"), [(1, 2), (2, 4)])
def test_random_faults_end_with_right_bytes_or_exact_rejects(seed: int, attempts: int) -> None:
    contents = many(8, 8)
    with (
        fake_idc(contents, pick=drawn(seed, 0.3, RANDOM_OBJECT, RANDOM_LISTING)) as fake,
        source_of(fake, attempts=attempts, timeout_s=0.6, requests=16) as source,
    ):
        found = read(source, fake.pinned())
        arrived = {key: data for key, data in found.items() if not isinstance(data, Reject)}
        lost = {key: data for key, data in found.items() if isinstance(data, Reject)}
        expected = whole(contents)
        assert arrived == {key: expected[key] for key in arrived}, "a wrong byte was taken"
        for key, reject in lost.items():
            assert (reject.stage, reject.code) == ("fetch", "fetch_failed")
            assert reject.detail in REASONS or reject.detail.startswith("too slow: "), key
        assert len(arrived) + sum(8 if "/" not in key else 1 for key in lost) == 64
        assert len(arrived) > 32
        asked = [place for place in {request.place for request in fake.first.log} if place.startswith(f"/{BUCKET}/")]
        assert all(len(fake.first.requests(place)) <= attempts for place in asked)
