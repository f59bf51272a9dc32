"""The journal of finished parts saves opening them, and is never believed over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumid.catalog.layout import Layout
from lumid.catalog.schema import CATALOG
from lumid.dags.journal import noting, recall
from lumid.pipeline import parts
from lumid.pipeline.parts import PartAccount, PartFiles, SeriesAccount, account_json, read_account, write_rows


def account(kept: int) -> PartAccount:
    return PartAccount((SeriesAccount(3, 10, kept, 10 - kept, 1, 1, (("sex", 2),)),), 1000, 2000, 1.5, (("kernel", 1),))


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A build under way, of which this process has read nothing yet."""
    monkeypatch.setattr(parts, "_known", {})
    made = Layout(tmp_path)
    made.parts.mkdir(parents=True)
    return made


def part(layout: Layout, name: str, kept: int) -> PartFiles:
    files = PartFiles(layout.parts, name)
    write_rows(files, CATALOG.empty_table(), [], account(kept))
    return files


def read_without_opening(files: PartFiles, monkeypatch: pytest.MonkeyPatch) -> PartAccount:
    with monkeypatch.context() as patch:
        patch.setattr(parts, "parquet_metadata", lambda path: pytest.fail(f"opened {path}"))
        return read_account(files)


def test_a_noted_part_is_not_opened(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = part(layout, "one", 4), part(layout, "other", 7)
    with noting(layout) as note:
        note(one, account(4))
        note(other, account(7))
    recall(layout)
    assert account_json(read_without_opening(one, monkeypatch)) == account_json(account(4))
    assert account_json(read_without_opening(other, monkeypatch)) == account_json(account(7))


def test_a_part_written_again_since_is_read(layout: Layout) -> None:
    files = part(layout, "one", 4)
    with noting(layout) as note:
        note(files, account(4))
    part(layout, "one", 8)
    recall(layout)
    assert account_json(read_account(files)) == account_json(account(8))


def test_half_a_line_costs_one_part_and_no_more(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, torn, later = (part(layout, name, 4) for name in ("whole", "torn", "later"))
    with noting(layout) as note:
        note(whole, account(4))
        note(torn, account(4))
    (journal,) = (path for path in layout.work.iterdir() if path.is_file())
    journal.write_bytes(journal.read_bytes()[:-7])
    with noting(layout) as note:
        note(later, account(4))
    recall(layout)
    for files in (whole, later):
        assert account_json(read_without_opening(files, monkeypatch)) == account_json(account(4))
    with pytest.raises(pytest.fail.Exception, match="opened"):
        read_without_opening(torn, monkeypatch)
    assert account_json(read_account(torn)) == account_json(account(4))
