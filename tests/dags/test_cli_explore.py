"""`lumid explore` as a person starts and ends it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest


def lumid(*arguments: str) -> subprocess.Popen[str]:
    # no browser is opened by a test, whatever the machine has
    environment = os.environ | {"BROWSER": "true", "COLUMNS": "200"}
    command = [sys.executable, "-m", "lumid", "explore", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_answers_until_it_is_told_to_stop(built: Path, number: signal.Signals) -> None:
    server = lumid(str(built), "age_years > 60", "--json")
    try:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        assert said["host"] == "127.0.0.1"
        assert parse_qs(urlsplit(said["url"]).query)["where"] == ["age_years > 60"]
        with urllib.request.urlopen(said["url"], timeout=30) as reply:
            assert reply.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://127.0.0.1:{said['port']}/api/dataset", timeout=30)
        with socket.socket() as other:
            other.settimeout(2)
            # nothing listens but at 127.0.0.1
            assert other.connect_ex(("127.0.0.2", said["port"])) != 0
        server.send_signal(number)
        out, err = server.communicate(timeout=30)
        assert (server.returncode, out, err) == (0, "", "")
    finally:
        server.kill()


def test_a_port_that_is_taken(built: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = lumid(str(built), "--port", str(taken.getsockname()[1]), "--no-browser")
        _, err = server.communicate(timeout=60)
    assert server.returncode == 2
    assert "choose another --port" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["{built}", "modality = "], 2, "not understood"),
        (["{built}", "modaliti = 'CT'"], 2, "did you mean modality"),
        (["{built}", "--host", "192.0.2.1"], 2, "not an address of this machine"),
        (["{built}/shards"], 1, "not a data set"),
    ],
)
def test_what_cannot_be_explored(built: Path, arguments: list[str], code: int, said: str) -> None:
    server = lumid(*(argument.format(built=built) for argument in arguments), "--no-browser")
    out, err = server.communicate(timeout=60)
    assert (server.returncode, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
