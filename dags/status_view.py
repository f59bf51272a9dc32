"""How `lumid status` shows the state of a build to a reader."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lumid.catalog.paths import AnyPath
from lumid.catalog.words import many
from lumid.dags.prices import PROVIDERS
from lumid.dags.status import RECENT_S, Rate, Running, Status

COLOURS = {"finished": "green", "running": "cyan", "stopped": "yellow"}
MOST_CODES = 6
UNITS = {
    "scan": "objects",
    "ingest": "objects",
    "check": "bytes",
    "index": "groups of parts",
    "pack": "shards and catalog files",
}


def view(dataset: AnyPath, found: Status, now: float, *, bar: bool) -> RenderableType:
    """A headline and a line a subject, with a ``bar`` or without; ``now`` in seconds since 1970."""
    note = f"; {found.phase}" if found.state == "finished" and found.phase != "done" else ""
    head = Text.from_markup(
        f"[bold]{escape(str(dataset))}[/]: [bold {COLOURS[found.state]}]{found.state}[/] ({found.name}){note}"
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, what in _lines(found, now, bar):
        grid.add_row(f"  {name}", what)
    return Group(head, grid)


def _lines(found: Status, now: float, bar: bool) -> Iterator[tuple[str, RenderableType]]:
    if found.state != "finished":
        yield "phase", _phase(found, bar)
    if found.batches:
        pieces = f" and {many(found.pieces_done, 'piece')} of long series" if found.pieces_done else ""
        objects = f"{found.objects_done:,} of {found.objects:,} objects"
        yield "batches", f"{found.batches_done:,} of {found.batches:,}{pieces}, {objects}"
    yield "frames", f"planned {found.planned:,} = kept {found.kept:,} + rejected {found.rejected:,}"
    if found.rejects:
        yield "rejected", _codes(found)
    if found.running:
        yield ("now" if found.state == "running" else "was at"), _running(found, now)
    if found.workers or found.workers_lost:
        yield "workers", _workers(found)
    if found.rate:
        yield "rate", _rates(found)
    yield from _times(found, now)
    yield from _requests(found)
    if found.dashboard:
        bokeh = importlib.util.find_spec("bokeh") is not None
        hint = "" if bokeh else "  [dim](its pages need: pip install 'lumid\\[dashboard]')[/]"
        yield "dashboard", Text.from_markup(escape(found.dashboard) + hint)
    if found.why:
        yield "stopped", Text(found.why, style="yellow")
    if found.advice:
        yield "to do", Text(found.advice)


def _phase(found: Status, bar: bool) -> RenderableType:
    if not found.phase_total:
        return Text(found.phase, style="bold")
    share = found.phase_done / found.phase_total
    facts = f"{share:.0%}, {found.phase_done:,} of {found.phase_total:,} {UNITS.get(found.phase, '')}"
    if found.seconds_left is not None:
        facts += f", about {span(found.seconds_left)} left"
    if not bar:
        return Text(f"{found.phase}: {facts}")
    row = Table.grid(padding=(0, 1))
    drawn = ProgressBar(total=1.0, completed=min(1.0, share), width=30)
    row.add_row(Text(found.phase, style="bold"), drawn, facts)
    return row


def _codes(found: Status) -> str:
    codes = [f"{code} {frames:,}" for code, frames in list(found.rejects.items())[:MOST_CODES]]
    more = len(found.rejects) - MOST_CODES
    return ", ".join(codes) + (f", and {more} more" if more > 0 else "")


def _running(found: Status, now: float) -> str:
    batches = [one for one in found.running if one.series is not None]
    pieces = sum(one.piece for one in found.running)
    others = len(found.running) - len(batches) - pieces
    workers = len({one.worker for one in found.running})
    what = []
    if batches:
        what.append(f"{many(len(batches), 'batch', 'batches')} with {sum(one.series or 0 for one in batches):,} series")
    if pieces:
        what.append(f"{many(pieces, 'piece')} of long series")
    if others:
        what.append(many(others, "other task" if what else "task"))
    where = f" on {many(workers, 'worker')}"
    return " and ".join(what) + where + _oldest(found.running[0], now if found.state == "running" else found.last_word)


def _oldest(one: Running, now: float | None) -> str:
    again = f", attempt {one.attempt}" if one.attempt > 1 else ""
    return "" if now is None else f"; the longest for {span(now - one.since)} ({one.task}{again})"


def _workers(found: Status) -> str:
    facts = (
        [f"{found.workers:,}"] if found.workers else ["none, it waits for some to join"] * (found.state == "running")
    )
    facts += [f"{found.workers_lost:,} lost"] if found.workers_lost else []
    facts += [f"{many(found.retried, 'task')} begun again"] if found.retried else []
    return ", ".join(facts)


def _rates(found: Status) -> str:
    assert found.rate
    whole = _rate(found.rate)
    recent = found.recent_rate
    if found.state == "running" and recent and recent != found.rate:
        return f"{_rate(recent)} in the last {span(RECENT_S)}; {whole} in this run"
    return whole


def _rate(rate: Rate) -> str:
    return f"{rate.slices_per_second:,.1f} slices/s, {size(rate.mb_per_second * 1e6)}/s"


def _times(found: Status, now: float) -> Iterator[tuple[str, str]]:
    if found.state == "running" and found.begun is not None:
        yield "time", f"running for {span(found.seconds)}"
    elif found.state == "stopped" and found.last_word is not None:
        yield "time", f"ran for {span(found.seconds)}; its last word was {span(now - found.last_word)} ago"
    elif found.state == "finished" and found.seconds:
        yield "time", f"took {span(found.seconds)}"


def _requests(found: Status) -> Iterator[tuple[str, str]]:
    asked = [one for one in found.requests if one.archive != "folder"]
    if not asked:
        return
    requests, sizes, bad = Counter[str](), Counter[str](), Counter[str]()
    for one in asked:
        requests[one.archive] += one.requests
        sizes[one.archive] += one.bytes
        if one.outcome != "ok":
            bad[one.outcome] += one.requests
    said = [f"{number:,} to {archive} ({size(sizes[archive])})" for archive, number in sorted(requests.items())]
    said += [f"{number:,} {outcome}" for outcome, number in sorted(bad.items())]
    yield "requests", ", ".join(said)
    yield "cost", _cost(found, set(requests))


def _cost(found: Status, archives: set[str]) -> str:
    yours = archives - PROVIDERS.keys() - {"tcia", "nih"}
    cost = found.cost
    if not yours:
        others = (
            f"; at list prices {dollars(cost.paid_by_archives)}, not charged to you"
            if archives & PROVIDERS.keys()
            else ""
        )
        return f"free to you: public archives, read anonymously{others}"
    return (
        f"about {dollars(cost.requests)} for requests to your own stores, and up to {dollars(cost.bytes_out)} for bytes that "
        "leave their region (list prices)"
    )


def dollars(amount: float) -> str:
    """An amount of US dollars.

    >>> dollars(0.004), dollars(1234.5)
    ('less than $0.01', '$1,234.50')
    """
    return "less than $0.01" if 0 < amount < 0.01 else f"${amount:,.2f}"


def size(number: float) -> str:
    """A number of bytes in the largest unit of which there is one.

    >>> size(950), size(30_048_471), size(1.92e12)
    ('950 B', '30.0 MB', '1.9 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:,.1f} TB"


def span(seconds: float) -> str:
    """A span of time in two units at most.

    >>> [span(seconds) for seconds in (4.2, 75, 3600, 9000, 200_000)]
    ['4 s', '1 min 15 s', '1 h', '2 h 30 min', '2 d 7 h']
    """
    left = round(max(0.0, seconds))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        parts.append((number, unit))
    first = next((at for at, (number, _) in enumerate(parts) if number), len(parts) - 1)
    return " ".join(f"{number} {unit}" for number, unit in parts[first : first + 2] if number) or "0 s"
