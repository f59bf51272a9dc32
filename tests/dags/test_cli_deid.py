"""``lumid deid``: the secret, the way back, and the audit, as one calls them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.keys import Keyer, weakness
from lumid.dags.cli import deid  # noqa: F401  registers the commands
from lumid.dags.cli.app import app
from tests.dicom import as_bytes, gradient, image

RUNNER = CliRunner()


def call(*arguments: object) -> tuple[int, str, str]:
    """Exit code, output and error; an error of lumid raises."""
    done = RUNNER.invoke(app, ["deid", *map(str, arguments)])
    if isinstance(done.exception, LumidError):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture
def key(tmp_path: Path) -> Path:
    assert call("key", "new", tmp_path / "key")[0] == 0
    return tmp_path / "key"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "images"
    made.mkdir()
    for number in range(3):
        one = image(
            gradient(),
            PatientID=f"47{number // 2}",
            IssuerOfPatientID="CLINIC",
            SOPInstanceUID=f"1.2.{number}",
            FrameOfReferenceUID="1.9",
        )
        (made / f"{number}.dcm").write_bytes(as_bytes(one))
    (made / "notes.txt").write_text("x")
    return made


def test_a_new_key_is_for_its_owner_alone_and_not_shown(tmp_path: Path) -> None:
    _, said, _ = call("key", "new", tmp_path / "key")
    secret = (tmp_path / "key").read_text().strip()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert weakness(secret.encode()) is None
    assert secret not in said
    with pytest.raises(UsageError, match="not overwritten"):
        call("key", "new", tmp_path / "key")
    assert (tmp_path / "key").read_text().strip() == secret
    with pytest.raises(UsageError, match="cannot be made"):
        call("key", "new", tmp_path / "none" / "key")


def test_pseudonyms_lead_their_owner_back(folder: Path, key: Path, tmp_path: Path) -> None:
    code, said, warned = call("map", folder, "--key-file", key, "--out", tmp_path / "map.csv")
    assert (code, said) == (0, "")
    assert "identifies patients" in warned
    assert (tmp_path / "map.csv").stat().st_mode & 0o777 == 0o600
    rows = list(csv.reader((tmp_path / "map.csv").read_text().splitlines()))
    keyer = Keyer(key.read_bytes().strip())
    found = {(kind, pseudonym): original for kind, pseudonym, original in rows[1:]}
    assert found["patient", keyer.pseudonym("patient", "CLINIC", "470")] == "470 issued by CLINIC"
    assert found["instance", keyer.pseudonym("instance", "1.2.1")] == "1.2.1"
    assert found["frame_of_reference", keyer.pseudonym("frame_of_reference", "1.9")] == "1.9"
    assert found["object", keyer.pseudonym("object", "local", "2.dcm")] == "2.dcm"
    assert len(found) == 2 + 1 + 1 + 3 + 1 + 4
    wanted = keyer.pseudonym("patient", "CLINIC", "471")
    code, said, _ = call("map", folder, "--key-file", key, "--find", wanted, "--out", "-")
    assert (code, said.splitlines()[1:]) == (0, [f"patient,{wanted},471 issued by CLINIC"])
    assert call("map", folder, "--key-file", key, "--find", "0" * 16, "--out", "-")[0] == 1


def test_identifiers_that_are_known_need_no_images(key: Path) -> None:
    keyer = Keyer(key.read_bytes().strip())
    _, said, _ = call("map", "--patient", "4711", "--uid", "1.2.3", "--key-file", key, "--out", "-")
    assert f"patient,{keyer.pseudonym('patient', '', '4711')},4711" in said
    assert f"series,{keyer.pseudonym('series', '1.2.3')},1.2.3" in said


def test_wrong_use_of_map(folder: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUMID_KEY", raising=False)
    with pytest.raises(UsageError, match="--out"):
        call("map", folder, "--key-file", key)
    with pytest.raises(UsageError, match="FOLDER"):
        call("map", "--key-file", key, "--out", "-")
    with pytest.raises(LumidError, match="deid key new"):
        call("map", folder, "--out", "-")
    (tmp_path / "weak").write_text("a" * 40)
    with pytest.raises(LumidError, match="repeats itself") as told:
        call("map", folder, "--key-file", tmp_path / "weak", "--out", "-")
    assert "aaaa" not in str(told.value)
    (tmp_path / "there.csv").write_text("x")
    with pytest.raises(UsageError, match="not overwritten"):
        call("map", folder, "--key-file", key, "--out", tmp_path / "there.csv")


def test_an_audit_names_lines_and_no_terms(built: Path, tmp_path: Path) -> None:
    terms, logs = tmp_path / "terms.txt", tmp_path / "logs"
    terms.write_text("Quimbleworth^Zebediah\n12/03/1961\nprostate_trial\n")
    logs.mkdir()
    assert call("audit", built, "--terms", terms)[0] == 1
    (logs / "a.log").write_text("failed on ZEBEDIAH QUIMBLEWORTH born 12 Mar 1961")
    code, said, _ = call("audit", built, "--terms", terms, "--logs", logs)
    assert code == 1
    assert "a.log: byte 10: line 1 of the terms" in said
    assert "line 2 of the terms, date" in said
    assert "quimble" not in said.lower()
    assert "3 terms FOUND" in said
    terms.write_text("Quimbleworth^Zebediah\n12/03/1961\n")
    code, said, _ = call("audit", built, "--terms", terms, "--json")
    told = json.loads(said)
    assert (code, told["clean"], told["finished"], told["findings"]) == (0, True, True, [])
    assert told["covered"]["kinds"]["parquet"] == 4
    code, said, _ = call("audit", built, "--terms", terms)
    assert said.strip().endswith("CLEAN")
    assert "2 terms in" in said
