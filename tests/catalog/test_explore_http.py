from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from lumid.catalog.errors import DatasetError
from lumid.catalog.explore.guard import host_is_ours, refusal
from lumid.catalog.explore.server import FACETS
from lumid.catalog.layout import read_manifest, write_text
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import CATALOG
from lumid.catalog.show import IMAGE_COLUMNS, image_rows, read_images
from tests.catalog.explore_server import Client, running

PATHS = (
    "/",
    "/api/dataset",
    "/api/samples",
    "/api/facets?column=modality",
    "/static/app.js",
    "/subset.parquet",
    "/nothing",
)


@pytest.fixture(scope="module")
def client(built: Path) -> Iterator[Client]:
    with running(built) as found:
        yield found


# ---- who is answered


@pytest.mark.parametrize("path", PATHS)
def test_without_the_secret_nothing_is_answered(client: Client, path: str) -> None:
    stranger = replace(client, cookie=False)
    for reply in (
        stranger.get(path),
        stranger.get(path, [("token", "x")]),
        stranger.get(path, Cookie="lumid_explore=x"),
    ):
        assert reply.status == 403
        assert client.secret.encode() not in reply.body


def test_the_link_lets_a_browser_in(client: Client) -> None:
    path = client.address.url.partition(str(client.address.port))[2]
    reply = replace(client, cookie=False).get(path)
    assert reply.status == 200
    cookie = reply.headers["set-cookie"]
    assert client.secret in cookie
    assert all(word in cookie for word in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert client.secret.encode() not in reply.body


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_a_name_from_outside_is_refused(client: Client, path: str, host: str) -> None:
    assert client.get(path, Host=host).status in (400, 403)


def test_addresses_and_own_names_are_ours() -> None:
    names = frozenset({"node7"})
    for host in ("127.0.0.1", "127.0.0.1:9000", "[::1]:1", "localhost:8765", "LOCALHOST", "node7:1", "10.0.0.3"):
        assert host_is_ours(host, names), host
    for host in (
        "",
        "node8",
        "node7.evil.example",
        "user@evil.example",
        "[::1",
        "127.0.0.1@evil.example",
        "0x7f.1.evil",
    ):
        assert not host_is_ours(host, names), host


def test_other_sites_are_refused(client: Client) -> None:
    for site in ("cross-site", "same-site"):
        assert client.get("/api/samples", Sec_Fetch_Site=site).status == 403
        assert client.get("/subset.parquet", Sec_Fetch_Site=site).status == 403
        assert client.get("/", Sec_Fetch_Site=site).status == 200
    for site in ("same-origin", "none"):
        assert client.get("/api/samples", Sec_Fetch_Site=site).status == 200
    assert refusal(host="localhost", names=frozenset(), site=None, given="ä", secret="s", is_page=False) is not None


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
def test_nothing_but_get(client: Client, method: str) -> None:
    for path in PATHS[:-1]:
        assert client.get(path, method=method).status == 405


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_forbids_what_is_not_its_own(client: Client, path: str) -> None:
    for reply in (client.get(path), replace(client, cookie=False).get(path)):
        policy = dict(part.strip().partition(" ")[::2] for part in reply.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == "'self'"
        assert "unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["cache-control"] == "no-store"
        assert "server" not in reply.headers
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/",
        "/../dataset.json", "/..%2f..%2fetc%2fpasswd", "/thumbnails/../../dataset.json", "/thumbnails/%2e%2e%2fdataset.json",
        "/pixels/" + "g" * 24, "/pixels/" + "0" * 23, "/pixels/" + "0" * 24, "/api/samples/" + "0" * 24, "/dataset.json",
        "/thumbnails/" + "0" * 24, "/shards/lumid-000000.tar", "/static/index.html%00.js", "/static/__init__.py",
    ],
)  # fmt: skip
def test_paths_lead_nowhere_else(client: Client, path: str) -> None:
    reply = client.get(path)
    assert reply.status == 404
    assert set(reply.json()) == {"error"}


# ---- what is answered


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(client: Client) -> None:
    html = client.get("/").body.decode()
    waiting, seen = re.findall(r'(?:src|href)="(static/[^"]+)"', html), set()
    assert "static/app.js" in waiting
    texts = [html]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        reply = client.get(f"/{name}")
        assert reply.status == 200, name
        texts.append(reply.body.decode())
        waiting += [f"static/{found}" for found in re.findall(r'from "\./([a-z]+\.js)"', texts[-1])]
    assert len(seen) > 8
    for text in texts:
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)
    assert not re.search(r"<script(?![^>]* src=)|\son\w+=|\sstyle=|<style", html)


def test_what_the_page_knows_of_the_data_set(client: Client, built: Path) -> None:
    info = client.get("/api/dataset").json()
    assert (info["name"], info["samples"], info["path"]) == ("synthetic", 40, str(built))
    assert [column["name"] for column in info["columns"] if column["offered"]] == list(FACETS)
    assert sorted(column["name"] for column in info["columns"]) == sorted(CATALOG.names)
    assert info["windows"]["lung"] == {"low": -1350.0, "high": 150.0}


def test_samples_and_facets(client: Client) -> None:
    page = client.get("/api/samples", [("is.modality", "CT"), ("page", "1")]).json()
    assert (page["total"], len(page["rows"]), page["where"]) == (14, 14, "modality = 'CT'")
    assert page["command"].endswith("\"modality = 'CT'\"")
    facets = client.get("/api/facets", [("is.modality", "CT"), ("column", "modality"), ("column", "age_years")]).json()
    assert facets[0]["values"] == [["CT", 14], ["MR", 13], ["US", 13]]
    assert sum(facets[1]["bars"]) == 14
    found = client.get("/api/values", [("column", "collection"), ("part", "lung")]).json()
    assert found["values"] == [["lung_trial", 14]]


@pytest.mark.parametrize(
    ("path", "parameters", "said"),
    [
        ("/api/samples", [("is.nothing", "1")], "does not have"),
        ("/api/samples", [("where", "modaliti = 'CT'")], "did you mean modality"),
        ("/api/samples", [("where", "read_text('/etc/passwd') = ''")], "understood|nothing else"),
        ("/api/samples", [("where", "key IN (SELECT content FROM read_text('/etc/passwd'))")], "nothing else"),
        ("/api/samples", [("where", "(SELECT getenv('HOME')) = 'x'")], "understood"),
        ("/api/samples", [("page", "-1")], "whole number"),
        ("/api/samples", [("page", "9" * 30)], "whole number"),
        ("/api/facets", [("column", "nothing")], "does not have"),
        ("/api/values", [], "column"),
        ("/subset.parquet", [("is.modality", "XA")], "no sample has"),
    ],
)
def test_wrong_questions_get_one_line(client: Client, path: str, parameters: list[tuple[str, str]], said: str) -> None:
    reply = client.get(path, parameters)
    assert reply.status == 400
    assert re.search(said, reply.json()["error"])
    assert "\n" not in reply.json()["error"]


def test_pixels_are_those_that_are_stored(client: Client, built: Path) -> None:
    rows = image_rows(read_catalog(built, columns=IMAGE_COLUMNS, limit=12))
    assert {row.modality for row in rows} == {"CT", "MR", "US"}
    for row, pixels in zip(rows, read_images(built, rows), strict=True):
        reply = client.get(f"/pixels/{row.key}")
        assert reply.headers["content-type"] == "application/octet-stream"
        kind = "<u2" if pixels.dtype.itemsize == 2 else "u1"
        np.testing.assert_array_equal(np.frombuffer(reply.body, kind).reshape(pixels.shape), pixels)


def test_thumbnails_follow_the_window(client: Client, built: Path) -> None:
    key = read_catalog(built, "modality = 'CT'", ["key"], limit=1)["key"][0].as_py()
    replies = [
        client.get(f"/thumbnails/{key}", parameters) for parameters in ([], [("window", "soft")], [("window", "lung")])
    ]
    images = [cv2.imdecode(np.frombuffer(reply.body, np.uint8), cv2.IMREAD_GRAYSCALE) for reply in replies]
    assert max(images[0].shape) == 192
    assert replies[0].body == replies[1].body
    assert np.abs(images[0].astype(int) - images[2]).mean() > 20
    assert client.get(f"/thumbnails/{key}", [("window", "liver")]).status == 400


def test_a_sample_and_its_series(client: Client, built: Path) -> None:
    (row,) = read_catalog(built, "modality = 'MR'", limit=1).to_pylist()
    assert client.get(f"/api/samples/{row['key']}").json() == row
    series = client.get(f"/api/series/{row['key']}").json()
    assert row["key"] in [one["key"] for one in series]
    assert {one["series"] for one in series} == {row["series"]}


def test_a_subset_is_downloaded_and_nothing_is_written_beside_the_data(
    client: Client, built: Path, tmp_path: Path
) -> None:
    before = sorted(path for path in built.rglob("*"))
    reply = client.get("/subset.parquet", [("is.modality", "CT"), ("to.age_years", "60")])
    assert reply.headers["content-disposition"] == 'attachment; filename="subset.parquet"'
    table = pq.read_table(io.BytesIO(reply.body))
    expected = read_catalog(built, "modality = 'CT' AND age_years <= 60", ["key"])["key"].to_pylist()
    assert table["key"].to_pylist() == expected
    assert expected
    (tmp_path / "subset.parquet").write_bytes(reply.body)
    assert read_catalog(tmp_path / "subset.parquet", columns=["key"])["key"].to_pylist() == expected
    assert sorted(path for path in built.rglob("*")) == before


def test_a_broken_shard_is_told_and_the_rest_goes_on(dataset: Path) -> None:
    rows = image_rows(read_catalog(dataset, columns=IMAGE_COLUMNS))
    broken, fine = rows[0], next(row for row in rows if row.shard != rows[0].shard)
    (dataset / "shards" / broken.shard).unlink()
    with running(dataset) as client:
        for path in ("thumbnails", "pixels"):
            reply = client.get(f"/{path}/{broken.key}")
            assert reply.status == 500
            assert "missing or not readable" in reply.json()["error"]
            assert client.get(f"/{path}/{fine.key}").status == 200


def test_hostile_texts_arrive_as_they_are(dataset: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    write_text(dataset / "dataset.json", replace(read_manifest(dataset), name=evil).to_json())
    with running(dataset) as client:
        reply = client.get("/api/dataset")
        assert reply.headers["content-type"].startswith("application/json")
        assert reply.json()["name"] == evil
        page = client.get("/api/samples", [("is.collection", evil)])
        assert page.json()["where"] == f"collection = '{evil}'"


def test_two_at_once_do_not_share_a_cookie(built: Path, client: Client) -> None:
    with running(built) as other:
        assert other.secret != client.secret
        assert other.get("/api/dataset", Cookie=f"lumid_explore_{client.address.port}={client.secret}").status == 200
        wrong = f"lumid_explore_{other.address.port}={client.secret}"
        assert replace(other, cookie=False).get("/api/dataset", Cookie=wrong).status == 403


def test_nothing_to_serve(tmp_path: Path) -> None:
    with pytest.raises(DatasetError), running(tmp_path):
        pass
