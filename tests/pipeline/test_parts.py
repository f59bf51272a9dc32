"""A part's account is read from its file once, and again when the file is another."""

from __future__ import annotations

from pathlib import Path

from lumid.catalog.schema import CATALOG
from lumid.pipeline.parts import PartAccount, PartFiles, SeriesAccount, read_account, write_rows


def account(kept: int) -> PartAccount:
    series = (SeriesAccount(3, 10, kept, 10 - kept), SeriesAccount(7, 5, 5, 0))
    return PartAccount(series, 1000, 2000, 1.5)


def plain(read: PartAccount) -> tuple[int, ...]:
    return read.objects, read.planned, read.kept, read.rejected, read.source_bytes, read.sample_bytes


def test_a_part_that_is_written_again_has_its_new_account(tmp_path: Path) -> None:
    files = PartFiles(tmp_path, "batch")
    write_rows(files, CATALOG.empty_table(), [], account(kept=4))
    assert plain(read_account(files)) == (15, 15, 9, 6, 1000, 2000)
    write_rows(files, CATALOG.empty_table(), [], account(kept=8))
    assert plain(read_account(files)) == (15, 15, 13, 2, 1000, 2000)


def test_an_account_without_some_series_leaves_the_whole_one_alone(tmp_path: Path) -> None:
    files = PartFiles(tmp_path, "batch")
    write_rows(files, CATALOG.empty_table(), [], account(kept=4))
    assert read_account(PartFiles(tmp_path, "batch", frozenset({3}))).kept == 5
    assert read_account(files).kept == 9


def test_an_account_is_not_read_twice(tmp_path: Path) -> None:
    files = PartFiles(tmp_path, "batch")
    write_rows(files, CATALOG.empty_table(), [], account(kept=4))
    assert read_account(files) is read_account(files)
