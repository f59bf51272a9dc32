"""Recipes: what is shipped is right, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumid.catalog.collections import collections, of_source
from lumid.catalog.errors import RecipeError
from lumid.pipeline.recipe import FetchSettings, make_keyer
from lumid.pipeline.recipe_files import load_recipe, make_recipe, parse_portable, parse_recipe, shipped_recipes

BASE = Path()
MINIMAL = 'name = "mine"\n[[sources]]\nkind = "pydicom"\n'


def test_shipped_recipes_load_and_teach() -> None:
    recipes = shipped_recipes()
    assert set(recipes) == {"demo", "lumid", "paper"}
    for name, text in recipes.items():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert sum("#" in line for line in text.splitlines()) >= 8, "a shipped recipe explains itself"
    assert load_recipe("paper").pixels.profile == "paper"
    assert load_recipe("paper").sources[0].idc_version == 20
    assert "pseudo_phi_dicom_data" in load_recipe("lumid").sources[0].exclude
    for name in ("lumid", "paper"):
        idc, nih, *by_hand = load_recipe(name).sources
        assert (idc.kind, idc.collections, nih.kind) == ("idc", (), "nih")
        assert nih.benchmark == ("include" if name == "paper" else "hold_out")
        assert {source.collection for source in by_hand} == {one.id for one in of_source("tcia_package")}
        for source in by_hand:
            assert (source.kind, source.by_hand, source.modality) == ("folder", True, "CT")
            known = collections()[source.collection]
            assert (source.license, source.doi) == (known.license, known.doi)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", ["f.toml", "TOML"]),
        ('name = "x"', ["f.toml", "sources", "missing"]),
        (MINIMAL.replace("pydicom", "foldr"), ["sources.0.kind", "'foldr'", "'folder'", "'pydicom'"]),
        ('name = "x"\nsources = [{}]', ["sources.0.kind: missing"]),
        ('name = "x"\nsources = []', ["sources: needs at least 1"]),
        (MINIMAL.replace("pydicom", "folder"), ["sources.0.path: missing"]),
        (
            MINIMAL + "path = 'x'",
            ["sources.0.path: unknown key", "allowed here: kind, collection, license, doi, names"],
        ),
        (MINIMAL.replace("pydicom", "idc") + "modalities = ['CTT']", ["sources.0.modalities.0", "'CTT'", "'CT'"]),
        (
            MINIMAL.replace("pydicom", "idc") + "licence = 'x'",
            ["sources.0.licence: unknown key", "licenses", "idc_version"],
        ),
        (MINIMAL.replace("pydicom", "idc") + "sop_classes = ['CT']", ["sources.0.sop_classes.0", "'CT'", "[0-9.]"]),
        (MINIMAL.replace("pydicom", "nih") + "benchmark = 'out'", ["sources.0.benchmark", "'hold_out'", "'include'"]),
        (MINIMAL.replace("pydicom", "tcia"), ["sources.0: ", "'collections' or 'manifest'"]),
        (MINIMAL + "[pixels]\nsiz = 3", ["pixels.siz", "unknown key", "size"]),
        (MINIMAL + "[pixels]\nsize = 'big'", ["pixels.size", "integer", "'native'"]),
        (MINIMAL + "[pixels]\nsize = 8", ["pixels.size", "16 to 8192"]),
        (MINIMAL + "[select]\nexact_duplicates = 'forget'", ["select.exact_duplicates", "'keep'", "'flag'", "'drop'"]),
        (MINIMAL + "[select]\nstride = 0", ["select.stride", "1"]),
        (MINIMAL + "[pixels]\ncodec = 'gif'", ["pixels.codec", "'gif'", "'png'", "'jhc'"]),
        (MINIMAL + "[select]\nmodalities = ['CTT']", ["select.modalities.0", "'CTT'", "'CT'"]),
        (MINIMAL + "[splits]\nval = 0.6\ntest = 0.5", ["splits", "below 1"]),
        (MINIMAL + "names = 'plain'\n[deid]\npolicy = 'private'", ["keyed", "private"]),
        (MINIMAL.replace("mine", "My Data"), ["name", "'My Data'", "lower-case"]),
    ],
)
def test_errors_name_file_key_and_what_is_allowed(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "f.toml", base=BASE)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("f.toml") == 1, "one thing is wrong, one thing is said"


@pytest.mark.parametrize("address", ["127.0.0.1:8080", "ftp://host", "https://", "http://a b", "s3://bucket"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="s3_endpoint"):
        FetchSettings(s3_endpoint=address)
    FetchSettings(s3_endpoint="http://127.0.0.1:8080/path", gs_endpoint="http://[::1]:80")


def test_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="demo, lumid, paper"):
        load_recipe("no-such-thing")


def test_paths_start_at_the_recipe_and_do_not_change_its_hash(tmp_path: Path) -> None:
    text = 'name = "mine"\n[[sources]]\nkind = "folder"\npath = "dicom"\n'
    one = parse_recipe(text, "f", base=tmp_path / "a")
    two = parse_recipe(text, "f", base=tmp_path / "b")
    assert one.sources[0].path == str(tmp_path / "a" / "dicom")
    assert one.hash() == two.hash()
    assert parse_recipe(text + "[pixels]\nsize = 512", "f", base=tmp_path).hash() != one.hash()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("demo", "6f01d4167f70d84020191583885de7cbe3c95f1e9b623000113eb800d21b163f"),
        ("lumid", "4c7849a05673a31ac965639459fd7294c4b3715ee100909099e4cb2a73bce636"),
        ("paper", "f745ee7fe7d25e331d7806506fabf2d4a606f05500b2d4bc5b6481630d2f62ba"),
    ],
)
def test_the_hashes_of_the_shipped_recipes_are_those_of_the_first_locks(name: str, expected: str) -> None:
    """Data sets, locks and unfinished builds are refused under another: it changes when what a recipe gives does."""
    assert load_recipe(name).hash() == expected


def test_the_default_size_of_batches_is_in_the_hash_what_it_was(tmp_path: Path) -> None:
    plain, said, other = (parse_recipe(MINIMAL + more, "f", base=tmp_path) for more in (
        "", "[shards]\nbatch_slices = 1000\n", "[shards]\nbatch_slices = 40\n"))  # fmt: skip
    assert plain.hash() == said.hash() != other.hash()
    portable = plain.portable()
    assert portable is not None
    assert parse_portable(portable, "f", base=tmp_path).shards.batch_slices is None


def test_a_manifest_on_this_machine_does_not_change_the_hash(tmp_path: Path) -> None:
    text = 'name = "mine"\n[[sources]]\nkind = "tcia"\nmanifest = "m.tcia"\n'
    one = parse_recipe(text, "f", base=tmp_path / "a")
    assert one.sources[0].manifest == str(tmp_path / "a" / "m.tcia")
    assert one.hash() == parse_recipe(text, "f", base=tmp_path / "b").hash()
    assert str(tmp_path) not in str(one.canonical())
    assert one.portable() is None


def test_a_recipe_without_local_files_comes_back_from_its_portable_form(tmp_path: Path) -> None:
    text = MINIMAL + "[pixels]\nsize = 128\n[sample]\nmax_gb = 1.5\n[fetch]\nrequests = 3\n"
    recipe = parse_recipe(text, "f", base=tmp_path)
    portable = recipe.portable()
    assert portable is not None
    back = parse_portable(portable, "f", base=tmp_path)
    assert back.hash() == recipe.hash()
    assert back.sample.max_gb == 1.5
    with pytest.raises(RecipeError, match="label: name: missing"):
        parse_portable("{}", "label", base=tmp_path)


def test_a_private_policy_needs_a_secret_and_never_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(MINIMAL + "[deid]\npolicy = 'private'", "f", base=BASE)
    monkeypatch.delenv("LUMID_KEY", raising=False)
    with pytest.raises(RecipeError, match="LUMID_KEY"):
        make_keyer(recipe.deid)
    monkeypatch.setenv("LUMID_KEY", "short")
    with pytest.raises(RecipeError, match="32"):
        make_keyer(recipe.deid)
    secret = "Vd83kq0-zP51xwLmYtB7cHn2Ru9JfaSe4GoKi6"
    monkeypatch.setenv("LUMID_KEY", secret)
    keyer = make_keyer(recipe.deid)
    assert secret not in repr(keyer)
    assert secret not in str(recipe.canonical())
    (tmp_path / "key").write_text(secret + "\n")
    from_file = recipe.deid.model_copy(update={"key_file": str(tmp_path / "key")})
    assert make_keyer(from_file).key("1.2", 0) == keyer.key("1.2", 0)


def test_a_folder_alone_is_a_recipe(tmp_path: Path) -> None:
    recipe = make_recipe(tmp_path, collection="my-study", license="CC BY 4.0")
    assert recipe.sources[0].license == "CC BY 4.0"
    with pytest.raises(RecipeError, match="collection"):
        make_recipe(tmp_path, collection="My Study!")
