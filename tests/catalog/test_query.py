from __future__ import annotations

import shutil
import signal
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.layout import Layout
from lumid.catalog.query import all_of, ask, connect, count_samples, read_catalog, run_sql, text, why_empty
from lumid.catalog.schema import CATALOG
from tests.factory import make_dataset


def rows(root: Path, sql: str) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in run_sql(root, sql).to_pylist()]


def test_counts_by_modality(built: Path) -> None:
    assert rows(built, "SELECT modality, count(*) FROM catalog GROUP BY 1 ORDER BY 1") == [
        ("CT", 14),
        ("MR", 13),
        ("US", 13),
    ]
    assert rows(built, "SELECT code, sum(frames)::INT FROM rejects GROUP BY 1 ORDER BY 1") == [
        ("blank", 1),
        ("localizer", 2),
        ("not_an_image", 3),
    ]


def test_answers_agree_with_pyarrow(built: Path) -> None:
    table = pq.read_table(built / "catalog")
    thin = [value is not None and value <= 2.5 for value in table["slice_thickness"].to_pylist()]
    wanted = Counter(modality for modality, yes in zip(table["modality"].to_pylist(), thin, strict=True) if yes)
    got = run_sql(built, "SELECT modality, count(*)::INT AS n FROM catalog WHERE slice_thickness <= 2.5 GROUP BY 1")
    assert dict(zip(got["modality"].to_pylist(), got["n"].to_pylist(), strict=True)) == wanted


def test_read_catalog(built: Path) -> None:
    table = read_catalog(built, "modality = 'CT' -- only these", ["key", "slice_thickness"], limit=3)
    assert table.num_rows == 3
    assert table["key"].to_pylist() == sorted(table["key"].to_pylist())
    assert table.schema.field("slice_thickness").metadata[b"unit"] == b"mm"
    assert read_catalog(built).schema.equals(CATALOG, check_metadata=True)
    assert count_samples(built, "modality = 'CT' OR modality = 'MR'") == 27


@pytest.mark.parametrize(
    "name", ["we[ird]*", "w\\ei", "w?i", "**", "a 'quoted' \"name\"", "{a,b}?", "key=zz", "modality=XX", "ünï; -- $x"]
)
def test_hostile_folder_names(tmp_path: Path, name: str) -> None:
    root = tmp_path / name / "ds"
    make_dataset(root, n=6)
    # what a pattern would match instead
    make_dataset(tmp_path / "wei" / "ds", n=9)
    table = read_catalog(root)
    assert Counter(table["modality"].to_pylist()) == {"CT": 2, "MR": 2, "US": 2}
    assert all(len(key) == 24 for key in table["key"].to_pylist())
    assert rows(root, "SELECT count(*) FROM rejects") == [(4,)]


def test_other_tools_read_the_catalog(built: Path) -> None:
    # as docs/querying.md says
    import duckdb
    import pandas as pd

    counted = duckdb.sql(
        f"SELECT modality, count(*) FROM read_parquet('{built}/catalog/*/*.parquet', hive_partitioning=true) GROUP BY 1 ORDER BY 1"
    )
    assert counted.fetchall() == [("CT", 14), ("MR", 13), ("US", 13)]
    frame = pd.read_parquet(built / "catalog", filters=[("modality", "==", "CT")], columns=["key", "slice_thickness"])
    assert sorted(frame["key"]) == read_catalog(built, "modality = 'CT'", ["key"])["key"].to_pylist()


def test_relative_path_and_moved_folder(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(built, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert count_samples(Path("moved")) == 40


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM '{secret}'",
        "SELECT * FROM read_csv('{secret}')",
        "SELECT * FROM read_text('{secret}')",
        "SELECT * FROM read_blob('{shard}')",
        "SELECT * FROM read_text('{manifest}')",
        "SELECT * FROM read_parquet('{part}/../../../../secret.csv')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM read_parquet('http://127.0.0.1:9/x.parquet')",
        "COPY catalog TO '{folder}/stolen.csv'",
        "EXPORT DATABASE '{folder}/stolen'",
        "ATTACH '{folder}/new.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "CREATE TABLE t AS SELECT 1",
        "DROP VIEW catalog",
        "CALL pragma_version()",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY catalog TO '{folder}/stolen.csv'",
        "",
        "-- nothing",
    ],
)
def test_nothing_else_can_be_read_or_written(dataset: Path, sql: str) -> None:
    folder = dataset.parent
    secret = folder / "secret.csv"
    secret.write_text("name\nJane Doe\n")
    before = sorted(folder.rglob("*"))
    part = next((dataset / "catalog").glob("*/*.parquet"))
    statement = sql.format(
        secret=secret,
        folder=folder,
        shard=dataset / "shards" / "lumid-000000.tar",
        manifest=dataset / "dataset.json",
        part=part,
    )
    with pytest.raises(UsageError) as caught:
        run_sql(dataset, statement)
    assert "\n" not in str(caught.value)
    assert "Jane" not in str(caught.value)
    assert str(folder) not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


def test_python_variables_cannot_be_read(built: Path) -> None:
    hidden = pa.table({"a": [1]})
    with connect(built) as connection, pytest.raises(UsageError, match="no table 'hidden'"):
        ask(connection, "SELECT * FROM hidden")
    assert hidden.num_rows == 1


@pytest.mark.parametrize(
    ("sql", "hint"),
    [
        ("SELECT modalty FROM catalog", "did you mean modality"),
        ("SELECT c.bodypart FROM catalog c", "did you mean body_part"),
        ("SELECT key FROM catalog WHERE thickness < 1", "did you mean slice_thickness"),
        ("SELECT key FROM catalog WHERE modality = CT", r"single quotes \('CT'\)"),
        ("SELECT reason FROM rejects", "no column 'reason'"),
        ("SELECT cod FROM rejects", "did you mean code"),
        ("SELECT * FROM catalogue", "there are catalog and rejects"),
        ("SELECT key FROM catalog WHERE", "not understood"),
        ("SELECT key FROM catalog GROUP BY modality", "not understood"),
    ],
)
def test_mistakes_get_one_line_with_a_hint(built: Path, sql: str, hint: str) -> None:
    with pytest.raises(UsageError, match=hint) as caught:
        run_sql(built, sql)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "SELECT modality::INTEGER AS parquet FROM catalog",
            "a value of modality cannot be turned into INTEGER; TRY_CAST",
        ),
        ("SELECT (width * 1000)::TINYINT AS parquet FROM catalog", "a value cannot be turned into TINYINT; TRY_CAST"),
        ("SELECT parquet FROM catalog", "no column 'parquet'"),
        ("SELECT key FROM catalog WHERE parquet = 1", "no column 'parquet'"),
        ("FROM parquet_x", "no table 'parquet_x'"),
        ("SELECT key FROM catalog WHERE width > 'wide'", "'wide' cannot be turned into"),
        ("SELECT key FROM catalog WHERE width = (SELECT width FROM catalog)", "a subquery gives more than one row"),
        ("SELECT date_trunc('foo', DATE '2020-01-01')", "of the data or of its own"),
        ("SELECT key FROM catalog WHERE regexp_matches(modality, '(')", "of the data or of its own"),
    ],
)
def test_what_is_wrong_is_told_in_our_words(built: Path, sql: str, said: str) -> None:
    """A value that does not fit as one; and a question that has the word parquet in it is no damaged file."""
    with pytest.raises(UsageError) as error:
        run_sql(built, sql)
    assert said in str(error.value)


def test_unknown_column_of_read_catalog(built: Path) -> None:
    with pytest.raises(UsageError, match="did you mean key"):
        read_catalog(built, columns=["keys"])


@pytest.mark.parametrize(
    ("where", "lines"),
    [
        ("modality = 'CTX'", ("no sample has modality = 'CTX'; modality is CT (14), MR (13), US (13)",)),
        ("kvp > 500 AND modality = 'CT'", ("no sample has kvp > 500; kvp is from 120 to 120 kV",)),
        (
            "modality = 'CT' AND (body_part = 'HEAD')",
            ("14 samples have modality = 'CT', and 8 have body_part = 'HEAD', but none has both",),
        ),
        ("exposure > 1", ("no sample has exposure > 1; exposure is not stated for any",)),
        (
            "(modality = 'PT' AND age_years > 1) AND sex = 'X' -- two",
            (
                "no sample has modality = 'PT'; modality is CT (14), MR (13), US (13)",
                "no sample has sex = 'X'; sex is F (24), M (16)",
            ),
        ),
    ],
)
def test_an_empty_answer_is_explained(built: Path, where: str, lines: tuple[str, ...]) -> None:
    assert count_samples(built, where) == 0
    assert why_empty(built, where) == lines


def test_or_is_one_condition(built: Path) -> None:
    (line,) = why_empty(built, "modality = 'CT' AND (field_strength > 1 OR channels = 3)")
    assert line.startswith("14 samples have modality = 'CT', and 26 have (")
    assert why_empty(built, "modality = 'CT' OR modality = 'XX'") == ()
    assert why_empty(built, None) == ()


def test_conditions_are_joined() -> None:
    assert all_of(None, " ", None) is None
    assert all_of("a OR b", None) == "a OR b"
    assert all_of("a OR b", "c") == "(a OR b) AND (c)"
    assert text("O'Brien") == "'O''Brien'"


def test_comment_in_a_joined_condition(built: Path) -> None:
    assert count_samples(built, all_of("modality = 'CT' -- x", "sex = 'F' -- y")) == count_samples(
        built, "modality = 'CT' AND sex = 'F'"
    )


def test_data_set_without_samples(tmp_path: Path) -> None:
    make_dataset(tmp_path / "ds", n=0)
    shutil.rmtree(tmp_path / "ds" / "rejects")
    assert read_catalog(tmp_path / "ds").num_rows == 0
    assert rows(tmp_path / "ds", "SELECT count(*) FROM rejects") == [(0,)]
    assert why_empty(tmp_path / "ds", "modality = 'CT'") == ("the data set holds no samples",)


def test_unfinished_data_set(dataset: Path) -> None:
    Layout(dataset).manifest.unlink()
    with pytest.raises(DatasetError, match="not a data set"):
        count_samples(dataset)
    assert count_samples(dataset, finished=False) == 40


@pytest.mark.parametrize("place", [0, 200])
def test_damaged_catalog(dataset: Path, place: int) -> None:
    for path in (dataset / "catalog").glob("*/*.parquet"):
        data = path.read_bytes()
        path.write_bytes(data[:place] if place == 0 else data[:place] + b"\0" * (len(data) - 8 - place) + data[-8:])
    with pytest.raises(DatasetError) as caught:
        count_samples(dataset, "p99 > 0")
    assert "\n" not in str(caught.value)


def test_catalog_of_another_format(dataset: Path) -> None:
    path = dataset / "catalog" / "modality=CT" / "part-00000.parquet"
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["sharpness"]), path)
    for other in (dataset / "catalog").glob("modality=[!C]*/*"):
        other.unlink()
    with pytest.raises(DatasetError, match="another format"):
        count_samples(dataset)


class _Stop(BaseException):
    """What the command line's handler of signals raises is no Exception, either."""


def _stop(*_: object) -> None:
    raise _Stop


def test_a_signal_during_a_query_is_what_its_handler_raises(built: Path) -> None:
    """DuckDB turns it into a RuntimeError of its own."""
    before = signal.signal(signal.SIGALRM, _stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with connect(built) as connection, pytest.raises(_Stop):
            ask(connection, "SELECT count(*) FROM range(100000000000) AS t(a) WHERE hash(a) % 5 = 2")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
