"""Recipes: what is shipped is right, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumid.catalog.errors import RecipeError
from lumid.pipeline.recipe import load_recipe, make_keyer, make_recipe, parse_recipe, shipped_recipes

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", ["f.toml", "TOML"]),
        ('name = "x"', ["f.toml", "sources", "missing"]),
        (MINIMAL.replace("pydicom", "foldr"), ["sources.0.kind", "'foldr'", "'folder'", "'pydicom'"]),
        (MINIMAL.replace("pydicom", "folder"), ["sources.0", "path"]),
        (MINIMAL + "[pixels]\nsiz = 3", ["pixels.siz", "unknown key", "size"]),
        (MINIMAL + "[pixels]\nsize = 'big'", ["pixels.size", "integer"]),
        (MINIMAL + "[pixels]\ncodec = 'gif'", ["pixels.codec", "'gif'", "'png'", "'jxl'"]),
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


def test_a_private_policy_needs_a_secret_and_never_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse_recipe(MINIMAL + "[deid]\npolicy = 'private'", "f", base=BASE)
    monkeypatch.delenv("LUMID_KEY", raising=False)
    with pytest.raises(RecipeError, match="LUMID_KEY"):
        make_keyer(recipe.deid)
    monkeypatch.setenv("LUMID_KEY", "short")
    with pytest.raises(RecipeError, match="32"):
        make_keyer(recipe.deid)
    secret = "s" * 40
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
