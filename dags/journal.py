"""The journal of finished parts: their accounts in one file. To open ten thousand parts for theirs takes seconds.

Parts are the truth: what the journal lacks, or tells of a file that has been written again since, is read from the part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lumid.catalog.layout import Layout
from lumid.catalog.paths import AnyPath
from lumid.pipeline.parts import PartAccount, PartFiles, account_json, parse_account, remember_account, stamp_of


@contextmanager
def noting(layout: Layout[AnyPath]) -> Iterator[Callable[[PartFiles, PartAccount], None]]:
    """Gives a function that notes a finished part. Nothing can be added to an object of a store: there it does nothing."""
    journal = _journal(layout)
    if journal is None:
        yield lambda *_: None
        return
    with journal.open("a", encoding="utf-8") as file:

        def note(files: PartFiles, account: PartAccount) -> None:
            # a killed process may have left half a line
            file.write("\n" + json.dumps([files.name, stamp_of(files), account_json(account)]))
            file.flush()

        yield note


def recall(layout: Layout[AnyPath]) -> None:
    """Remember the accounts that the journal holds."""
    journal = _journal(layout)
    if journal is None or not journal.is_file():
        return
    folder = layout.parts
    with journal.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                name, (inode, changed_ns, size), account = json.loads(line)
                remember_account(PartFiles(folder, name), (inode, changed_ns, size), parse_account(account))
            except (ValueError, TypeError, KeyError):
                continue  # an empty line, or half of one


def _journal(layout: Layout[AnyPath]) -> Path | None:
    return layout.work / "accounts.jsonl" if isinstance(layout.work, Path) else None
