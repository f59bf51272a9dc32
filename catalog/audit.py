"""The audit of a data set: whether any of given terms is anywhere in its files, in any form that texts have.

Everything under its folder is read: names of files and of members, shards, Parquet (values, statistics and metadata),
JSON, HTML, pictures, archives and logs. What a finding says is where it is and the line of its term: never the text.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from lumid.catalog.contents import Found, Searcher
from lumid.catalog.errors import UsageError
from lumid.catalog.matching import Matcher, Passed
from lumid.catalog.terms import Term, patterns_of

MAX_FINDINGS = 10_000


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """A term in a data set: the file and the place in it, the term's line, the form it has there, and how often."""

    file: str
    place: str
    line: int
    form: str
    count: int


@dataclass(frozen=True, slots=True)
class Unsearched:
    """A file that could not be read, or not to its end, and why."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class Covered:
    """What an audit has looked through.

    ``kinds``: files by kind; ``parts``: members of archives, values of Parquet columns and so on, by kind;
    ``passed_over``: matches that were passed over, by reason.
    """

    terms: int
    patterns: int
    files: int
    bytes: int
    kinds: dict[str, int]
    parts: dict[str, int]
    passed_over: dict[str, int]
    seconds: float


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit; ``clean``: nothing was found, and nothing was left unread."""

    findings: tuple[AuditFinding, ...]
    unsearched: tuple[Unsearched, ...]
    covered: Covered
    finished: bool

    @property
    def clean(self) -> bool:
        """Whether every file was searched and none holds a term."""
        return not self.findings and not self.unsearched


@dataclass(slots=True)
class _Outcome:
    """What has come of one file."""

    name: str
    bytes: int
    kind: str
    found: list[Found] = field(default_factory=list)
    parts: Counter[str] = field(default_factory=Counter)
    passed: Passed = field(default_factory=Passed)
    trouble: str = ""


def audit(
    dataset: Path,
    terms: Sequence[Term],
    *,
    logs: Sequence[Path] = (),
    name_parts: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Search a data set, and folders or files of ``logs``, for terms.

    ``name_parts``: parts of names by themselves, too. ``progress`` is told bytes done and all bytes. Memory is bounded by
    the number of workers, whatever the size of the files. Raises :class:`UsageError` when there is nothing to search.
    """
    started = time.monotonic()
    for root in (dataset, *logs):
        if not root.exists():
            raise UsageError(f"{root}: no such folder to audit")
    matcher = Matcher([pattern for term in terms for pattern in patterns_of(term, name_parts=name_parts)])
    searcher = Searcher(matcher)
    files = [item for root in (dataset, *logs) for item in _files(root, searcher)]
    total = sum(size for _, _, size in files)
    done = 0
    outcomes = []
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1), thread_name_prefix="lumid-audit") as pool:
        for outcome in pool.map(lambda item: _one(searcher, *item), files):
            outcomes.append(outcome)
            done += outcome.bytes
            if progress:
                progress(done, total)
    return _summed(outcomes, len(terms), len(matcher.patterns), started, (dataset / "dataset.json").is_file())


def _files(root: Path, searcher: Searcher) -> Iterator[tuple[Path, str, int]]:
    """Everything below a folder that is no folder: path, a name that may be shown, size; links are not followed."""
    if not root.is_dir():
        yield root, root.name, root.stat().st_size
        return
    pending = [(root, "")]
    while pending:
        folder, shown = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield folder, shown or ".", 0
            continue
        folders = []
        for number, entry in enumerate(entries, 1):
            name = shown + searcher.showable(entry.name, f"[entry {number} of {len(entries)}]")
            if entry.is_dir(follow_symlinks=False):
                folders.append((Path(entry.path), name + "/"))
            yield Path(entry.path), name, entry.stat(follow_symlinks=False).st_size if entry.is_file() else 0
        pending += reversed(folders)


def _one(searcher: Searcher, path: Path, shown: str, size: int) -> _Outcome:
    """Search one file: its name, and all that is in it."""
    outcome = _Outcome(shown, size, "folder")
    try:
        outcome.found += searcher.name(path.name, outcome.passed)
        if path.is_symlink():
            outcome.kind = "link"
            outcome.found += searcher.name(str(path.readlink()), outcome.passed, "where the link leads")
        elif path.is_file():
            with path.open("rb") as file:
                outcome.kind = searcher.kind(file)
                for found in searcher.file(path, file, outcome.kind, outcome.parts, outcome.passed):
                    outcome.found.append(found)
                    if len(outcome.found) > MAX_FINDINGS:
                        outcome.trouble = f"left after {MAX_FINDINGS:,} findings"
                        break
        elif path.is_dir():
            os.scandir(path).close()
        else:
            outcome.kind, outcome.trouble = "other", "not a regular file"
    except OSError as error:
        outcome.trouble = os.strerror(error.errno) if error.errno else "cannot be read"
    except Exception as error:  # a damaged file: its text could be in the message
        outcome.trouble = f"damaged, or of a variety that is not read ({type(error).__name__})"
    return outcome


def _summed(outcomes: list[_Outcome], terms: int, patterns: int, started: float, finished: bool) -> Audit:
    kinds: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    passed: Counter[str] = Counter()
    counts: Counter[tuple[str, str, int]] = Counter()
    first: dict[tuple[str, str, int], Found] = {}
    for outcome in outcomes:
        kinds[outcome.kind] += 1
        parts.update(outcome.parts)
        passed.update(outcome.passed.counts)
        for found in outcome.found:
            key = outcome.name, found.part, found.line
            counts[key] += found.count
            first.setdefault(key, found)
    findings = [
        AuditFinding(name, first[name, part, line].place, line, first[name, part, line].form, count)
        for (name, part, line), count in counts.items()
    ]
    return Audit(
        findings=tuple(findings),
        unsearched=tuple(Unsearched(outcome.name, outcome.trouble) for outcome in outcomes if outcome.trouble),
        covered=Covered(
            terms=terms,
            patterns=patterns,
            files=sum(kinds.values()) - kinds["folder"],
            bytes=sum(outcome.bytes for outcome in outcomes),
            kinds=dict(sorted(kinds.items())),
            parts=dict(sorted(parts.items())),
            passed_over=dict(sorted(passed.items())),
            seconds=round(time.monotonic() - started, 3),
        ),
        finished=finished,
    )
