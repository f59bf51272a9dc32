"""What a folder holds: a finished data set, a build that runs, or one that stopped."""

from __future__ import annotations

import fcntl
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lumid.catalog.layout import Layout, read_manifest, write_text
from lumid.catalog.paths import AnyPath
from lumid.dags.journal import recall
from lumid.pipeline.parts import PartAccount, PartFiles, read_account


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a build: ``finished``, ``running`` or ``stopped``, and how far it is, in batches and frames."""

    state: str
    name: str
    phase: str
    batches_done: int
    batches: int
    objects_done: int
    objects: int
    planned: int
    kept: int
    rejected: int
    seconds_left: float | None


def status(root: Path) -> Status:
    """The status of the data set at ``root``.

    Raises :class:`~lumid.catalog.errors.DatasetError` when there is neither a data set nor a build.
    """
    layout = Layout(root)
    running = _is_running(layout)
    # what a finished data set lacks may be on its way
    if (layout.manifest.is_file() and not running) or not layout.state.is_file():
        manifest = read_manifest(root)
        counts = manifest.counts
        return Status(
            "finished",
            manifest.name,
            "done"
            if not layout.state.is_file()
            else "being completed when it stopped: run the same `lumid build` again",
            0,
            0,
            counts.objects,
            counts.objects,
            counts.planned,
            counts.kept,
            counts.rejected,
            0.0,
        )
    state = json.loads(layout.state.read_text("utf-8"))
    accounts = _accounts(layout, state.get("batch_ids", []))
    return Status(
        state="running" if running else "stopped",
        name=state["recipe_name"],
        phase=state["phase"],
        batches_done=len(accounts),
        batches=state["batches"],
        objects_done=sum(account.objects for account in accounts),
        objects=state.get("objects", 0),
        planned=sum(account.planned for account in accounts),
        kept=sum(account.kept for account in accounts),
        rejected=sum(account.rejected for account in accounts),
        seconds_left=_seconds_left(layout, state.get("batch_ids", []), len(accounts)) if running else None,
    )


def _accounts(layout: Layout, batches: list[str]) -> list[PartAccount]:
    recall(layout)
    files = [PartFiles(layout.parts, batch) for batch in batches]
    return [read_account(one) for one in files if one.rows.is_file()]


def _is_running(layout: Layout) -> bool:
    try:
        with (layout.work / "running").open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _seconds_left(layout: Layout, batches: list[str], done: int) -> float | None:
    """From the rate of the last hour's parts: what an earlier, interrupted run did says nothing of this one."""
    now = time.time()
    times = sorted(
        (layout.parts / PartFiles(layout.parts, batch).rows.name).stat().st_mtime
        for batch in batches
        if PartFiles(layout.parts, batch).rows.is_file()
    )
    recent = [moment for moment in times if now - moment < 3600]
    if len(recent) < 2 or recent[-1] == recent[0]:
        return None
    return (len(batches) - done) * (recent[-1] - recent[0]) / (len(recent) - 1)


def write_state(layout: Layout[AnyPath], **facts: Any) -> None:
    """Update what `lumid status` reads."""
    state = json.loads(layout.state.read_text("utf-8")) if layout.state.is_file() else {"started": time.time()}
    write_text(layout.state, json.dumps(state | facts) + "\n")
