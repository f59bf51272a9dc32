"""Plans: totals, drift, folders, options of the command line, and locks that can be built from alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from lumid.catalog.errors import RecipeError
from lumid.pipeline.estimate import assumptions_of, estimate
from lumid.pipeline.lock import lock_hash, read_lock, write_lock
from lumid.pipeline.plan import CollectionPlan, Plan, pin, plan
from lumid.pipeline.recipe import (
    FolderSettings,
    IdcSettings,
    NihSettings,
    PixelSettings,
    PydicomSettings,
    Recipe,
    SampleSettings,
)
from lumid.pipeline.recipe_files import load_recipe, parse_fraction, with_overrides
from tests.dicom import TEST_FILES

LUMID = Recipe(name="whole", sources=(IdcSettings(idc_version=25),))
SMALL = Recipe(name="small", sources=(IdcSettings(collections=("tcga_sarc", "tcga_read"), idc_version=25),))


def folder_recipe(path: Path | str, **facts: object) -> Recipe:
    return Recipe(name="mine", sources=(FolderSettings(path=str(path), **facts),))  # type: ignore[arg-type]


def by_name(made: Plan) -> dict[str, CollectionPlan]:
    return {one.collection: one for one in made.collections}


# ---- archives


@pytest.fixture(scope="module")
def whole() -> Plan:
    return plan(LUMID)


def test_the_whole_of_lumid_adds_up(whole: Plan) -> None:
    totals = whole.totals
    assert (totals.patients, totals.series, len(whole.collections)) == (5_119, 36_864, 25)
    assert whole.lock.num_rows == 36_864
    assert totals.gb == pytest.approx(1923.1, abs=0.1)
    if not any(
        one.uncounted for one in whole.collections
    ):  # an index of a later version does not count what it revised
        assert totals.slices == 3_210_467
        assert totals.non_commercial_slices == 31_856 + 21_220 + 13_482
    # 53 kB a slice
    assert totals.gb_out == pytest.approx(170.2, abs=0.1)


def test_drift_against_the_paper(whole: Plan) -> None:
    drifts = {name: one.drift for name, one in by_name(whole).items()}
    assert all(drifts.values())
    lca, ricord, ccrcc, rider = (
        drifts[name] for name in ("cmb_lca", "midrc_ricord_1b", "cptac_ccrcc", "rider_lung_ct")
    )
    assert lca
    assert (lca.paper_subjects, lca.patients, lca.missing, lca.extra) == (10, 129, (), ("PT",))
    # 110 + 117 patients in one row of the paper
    assert ricord
    assert (ricord.paper_subjects, ricord.patients) == (227, 227)
    assert ricord.rows == ("midrc_ricord_1b", "midrc_ricord_1a")
    assert ccrcc
    assert (ccrcc.paper_subjects, ccrcc.patients, ccrcc.missing) == (222, 71, ("Pathology",))
    assert rider
    assert (rider.missing, rider.extra) == (("CR", "DX"), ())


def test_the_chest_xrays_are_counted_when_all_of_them_are_planned() -> None:
    [one] = plan(Recipe(name="xrays", sources=(NihSettings(),))).collections
    assert (one.series, one.slices, one.patients, one.uncounted) == (12, 112_120, 30_805, 0)
    assert one.drift
    assert (one.drift.patients, one.drift.missing, one.drift.extra) == (30_805, (), ())
    [some] = plan(Recipe(name="xrays", sources=(NihSettings(archives=(1, 2)),))).collections
    assert (some.series, some.slices, some.patients, some.uncounted) == (2, None, None, 2)


def test_drift_is_of_the_selection_and_not_of_the_sample(whole: Plan) -> None:
    sampled = plan(with_overrides(LUMID, sample=0.2))
    assert 0 < sampled.totals.patients < 0.3 * whole.totals.patients
    for name, one in by_name(sampled).items():
        assert one.drift == by_name(whole)[name].drift
    assert any(note.startswith("a sample: ") for note in sampled.notes)


def test_an_earlier_version_counts_what_it_can_and_says_what_it_cannot() -> None:
    made = plan(Recipe(name="old", sources=(IdcSettings(collections=("cptac_ccrcc",), idc_version=20),)))
    [one] = made.collections
    assert (one.source_version, one.series, one.patients) == ("IDC v20", 815, 70)
    assert (one.slices, one.uncounted) == (104_402, 1)
    assert any(note.startswith("not in the number of slices: 1 series") for note in made.notes)
    assert any("IDC version 20 of 2024-11-06" in note for note in made.notes)


def test_a_sample_that_nothing_fits_into_says_so() -> None:
    made = plan(with_overrides(SMALL, max_gb=0.000001))
    assert made.lock.num_rows == 0
    assert any("the sample is empty" in note for note in made.notes)


def test_conditions_that_leave_a_collection_empty_are_told() -> None:
    made = plan(Recipe(name="x", sources=(IdcSettings(collections=("tcga_sarc", "qin_lung_ct"), modalities=("MR",)),)))
    assert list(by_name(made)) == ["tcga_sarc"]
    assert any(note.startswith("qin_lung_ct: IDC has nothing in it") for note in made.notes)


def test_every_source_keeps_its_number() -> None:
    recipe = Recipe(
        name="three",
        sources=(PydicomSettings(), IdcSettings(collections=("tcga_read",)), IdcSettings(collections=("tcga_sarc",))),
    )
    numbers = {row["collection"]: row["recipe_source"] for row in pin(recipe).to_pylist()}
    assert numbers == {"tcga_read": 1, "tcga_sarc": 2}
    assert pin(recipe).equals(plan(recipe).lock)


# ---- folders


def test_a_folder_is_counted_and_not_opened(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    shutil.copy(TEST_FILES / "CT_small.dcm", tmp_path / "deep" / "a")
    shutil.copy(TEST_FILES / "MR_small.dcm", tmp_path / "b.dcm")
    [one] = plan(folder_recipe(tmp_path, license="CC BY-NC 4.0")).collections
    size = sum((TEST_FILES / name).stat().st_size for name in ("CT_small.dcm", "MR_small.dcm"))
    assert (one.files, one.gb, one.slices, one.commercial) == (2, size / 1e9, None, False)


def test_the_demo_plans_what_is_in_the_wheel() -> None:
    [one] = plan(load_recipe("demo")).collections
    assert one.files == sum(1 for path in TEST_FILES.rglob("*") if path.is_file())


def test_a_folder_that_is_not_there_is_an_error_unless_it_is_filled_by_hand(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such folder"):
        plan(folder_recipe(tmp_path / "none"))
    facts = {"by_hand": True, "collection": "ct_org", "doi": "10.7937/tcia.2019.tt7f4v7o", "modality": "CT"}
    made = plan(folder_recipe(tmp_path / "ct_org", **facts))
    [one] = made.collections
    assert (one.source, one.files, one.gb) == ("by hand", None, None)
    [note] = [note for note in made.notes if note.startswith("ct_org: by hand")]
    for word in ("CT-ORG", "https://doi.org/10.7937/tcia.2019.tt7f4v7o", str(tmp_path / "ct_org"), "Aspera"):
        assert word in note
    (tmp_path / "ct_org").mkdir()
    assert by_name(plan(folder_recipe(tmp_path / "ct_org", **facts)))["ct_org"].files is None, (
        "an empty folder is no more"
    )
    (tmp_path / "ct_org" / "volume-0.nii.gz").write_bytes(b"x" * 1000)
    made = plan(folder_recipe(tmp_path / "ct_org", **facts))
    assert (by_name(made)["ct_org"].source, by_name(made)["ct_org"].files) == ("folder", 1)
    assert not any("by hand" in note for note in made.notes)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of an S3 server on this machine, with three objects in the bucket ``archive``."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
        )
        client.create_bucket(Bucket="archive", ACL="public-read")
        for name, size in (("scans/a", 10), ("scans/deep/b", 20), ("other", 40)):
            client.put_object(Bucket="archive", Key=name, Body=b"x" * size, ACL="public-read")
        yield endpoint
    finally:
        server.stop()


def test_a_prefix_of_an_object_store_is_counted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    [one] = plan(folder_recipe("s3://archive/scans")).collections
    assert (one.files, one.gb) == (2, 30 / 1e9)
    with pytest.raises(RecipeError, match="nothing in it"):
        plan(folder_recipe("s3://archive/none"))
    with pytest.raises(RecipeError, match="cannot be listed"):
        plan(folder_recipe("s3://no-such-bucket/scans"))


# ---- estimates


def test_estimates_grow_with_pixels_but_not_beyond_what_archives_hold() -> None:
    at = {size: assumptions_of(PixelSettings(size=size)).kb_per_slice for size in (128, 256, 512, 1024)}
    assert at == {128: 13.25, 256: 53.0, 512: 212.0, 1024: 212.0}
    assert assumptions_of(PixelSettings(size="native")).kb_per_slice == 212.0
    assert assumptions_of(PixelSettings(codec="png")).kb_per_slice == 68.0
    assert assumptions_of(PixelSettings(profile="paper")).kb_per_slice == 17.0


def test_time_is_that_of_the_slower_of_fetching_and_processing() -> None:
    assumed = assumptions_of(PixelSettings())
    fetching = estimate(1, 10**12, 0, assumed)
    assert fetching.seconds == pytest.approx(1e6 / assumed.fetch_mb_s)
    processing = estimate(10**6, 10**6, 0, assumed)
    assert processing.seconds == pytest.approx(1e3 * assumed.ms_per_slice / assumed.cores)
    assert processing.gb_out == pytest.approx(53.0)
    uncounted = estimate(0, 5_260_000, 5_260_000, assumed)
    assert uncounted.gb_out == pytest.approx(10 * 53e3 / 1e9)


# ---- options of the command line


@pytest.mark.parametrize(
    ("text", "share"), [("0.1%", 0.001), ("0.001", 0.001), (" 5 % ", 0.05), ("100%", 1.0), ("1", 1.0)]
)
def test_shares(text: str, share: float) -> None:
    assert parse_fraction(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["5", "0", "-1%", "101%", "", "%", "many", "nan"])
def test_what_is_not_a_share(text: str) -> None:
    with pytest.raises(RecipeError, match=r"0\.1%"):
        parse_fraction(text)


def test_options_change_the_recipe_and_its_hash() -> None:
    recipe = load_recipe("lumid")
    assert with_overrides(recipe) == recipe
    changed = with_overrides(recipe, sample=0.1, max_gb=5.0)
    assert changed.sample == SampleSettings(fraction=0.1, max_gb=5.0)
    assert changed.hash() != recipe.hash()
    assert with_overrides(changed, sample=0.2).sample == SampleSettings(fraction=0.2, max_gb=5.0)
    with pytest.raises(RecipeError, match=r"sample\.max_gb: .*greater than 0"):
        with_overrides(recipe, max_gb=-1.0)


def test_only_some_collections() -> None:
    recipe = load_recipe("lumid")
    some = with_overrides(recipe, collections=["LIDC-IDRI", "ct_org"])
    assert [source.kind for source in some.sources] == ["idc", "folder"]
    idc, folder = some.sources
    assert isinstance(idc, IdcSettings)
    assert isinstance(folder, FolderSettings)
    assert idc.collections == ("lidc_idri",)
    assert folder.collection == "ct_org"
    [xrays] = with_overrides(recipe, collections=["nih_chest_xray"]).sources
    assert isinstance(xrays, NihSettings)
    with pytest.raises(RecipeError, match="did you mean 'lidc_idri'"):
        with_overrides(recipe, collections=["lidc"])
    with pytest.raises(RecipeError, match="not among the recipe's"):
        with_overrides(recipe, collections=["pseudo_phi_dicom_data"])  # the recipe leaves it out


# ---- locks


def test_a_lock_comes_back_with_its_recipe(tmp_path: Path) -> None:
    recipe = with_overrides(SMALL, max_gb=1.0)
    lock = pin(recipe)
    path = tmp_path / "x.lock.parquet"
    write_lock(path, lock, recipe)
    back, made_from = read_lock(path)
    assert back.equals(lock)
    assert back.num_rows > 3
    assert lock_hash(back) == lock_hash(lock)
    assert made_from == recipe
    assert read_lock(path, recipe)[1] is recipe
    with pytest.raises(RecipeError, match="other options"):
        read_lock(path, SMALL)


def test_planning_again_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_lock(tmp_path / name, pin(SMALL), SMALL)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_lock_keeps_no_path_of_the_machine(tmp_path: Path) -> None:
    recipe = Recipe(name="both", sources=(*SMALL.sources, FolderSettings(path=str(tmp_path / "secret-place"))))
    path = tmp_path / "x.lock.parquet"
    write_lock(path, pin(recipe), recipe)
    assert b"secret-place" not in path.read_bytes()
    assert read_lock(path)[1] is None
    assert read_lock(path, recipe)[1] is recipe


def test_the_chest_xrays_of_a_lock_are_looked_for_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(name="xrays", sources=(NihSettings(path="/somewhere/else"),))
    path = tmp_path / "x.lock.parquet"
    write_lock(path, pin(SMALL), recipe)
    monkeypatch.chdir(tmp_path)
    _, back = read_lock(path)
    assert back is not None
    [source] = back.sources
    assert isinstance(source, NihSettings)
    assert source.path == str(tmp_path / "nih_chest_xray")
    assert back.hash() == recipe.hash()


def test_what_is_not_a_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(RecipeError, match="lumid plan RECIPE"):
        read_lock(tmp_path / "text")
    with pytest.raises(RecipeError, match="lumid plan RECIPE"):
        read_lock(tmp_path / "none")
    pq.write_table(pin(SMALL).select(["series"]), tmp_path / "other.parquet")
    with pytest.raises(RecipeError, match="not a lock"):
        read_lock(tmp_path / "other.parquet")
    with pytest.raises(RecipeError, match="is a folder"):
        write_lock(tmp_path, pin(SMALL), SMALL)


def test_a_recipe_that_selects_nothing_is_refused() -> None:
    recipe = Recipe(name="none", sources=(IdcSettings(collections=("lidc_idri",), modalities=("MG",)),))
    with pytest.raises(RecipeError, match="selects no series"):
        pin(recipe)
    with pytest.raises(ValueError, match="max_slices is below min_slices"):
        IdcSettings(min_slices=50, max_slices=3)


def test_a_lock_whose_rows_were_changed_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(name="part", sources=(IdcSettings(collections=("tcga_sarc",)),))
    write_lock(tmp_path / "lock.parquet", pin(recipe), recipe)
    assert read_lock(tmp_path / "lock.parquet", recipe)[0].num_rows
    table = pq.read_table(tmp_path / "lock.parquet")
    free = table.set_column(table.schema.get_field_index("license"), "license", pa.array(["CC0"] * table.num_rows))
    for other in (table.slice(1), free, pa.concat_tables([table, table]), table.replace_schema_metadata(None)):
        pq.write_table(other, tmp_path / "changed.parquet")
        with pytest.raises(RecipeError, match="not those that were written"):
            read_lock(tmp_path / "changed.parquet", recipe)
