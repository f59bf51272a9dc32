"""`lumid explore` in a real Chromium: what a person would see and do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lumid.catalog.query import read_catalog, run_sql
from lumid.catalog.show import IMAGE_COLUMNS, RGB, ImageRow, image_rows, read_images, to_display
from tests import factory
from tests.catalog.browser import chromium
from tests.catalog.explore_server import Client, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

EVIL = "<img src=x onerror='window.hacked=1'>\"&amp;"
READ_CANVAS = """() => {
  const canvas = document.querySelector('#viewer .stage canvas');
  const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return [canvas.height, canvas.width, Array.from(data)];
}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 200 samples, more than a page, one of whose collections has a hostile name."""
    path = tmp_path_factory.mktemp("explore") / "ds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(factory.COLLECTIONS, "MR", (EVIL, "CC BY-NC 4.0", None))
        patch.setattr(factory, "SLICES_PER_SERIES", 10)
        factory.make_dataset(path, n=200)
    return path


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[Client]:
    with running(root) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Browser, server: Client) -> Iterator[Page]:
    """The page as it opens; fails the test when anything in it failed, or asked anyone but this server."""
    context = browser.new_context(viewport={"width": 1300, "height": 850})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    found = context.new_page()
    troubles: list[str] = []
    found.on("pageerror", lambda error: troubles.append(str(error)))
    found.on("console", lambda message: message.type == "error" and troubles.append(message.text))
    found.on("dialog", lambda dialog: troubles.append(f"dialog {dialog.message}"))
    ours = f"http://127.0.0.1:{server.address.port}/"
    found.on("request", lambda request: request.url.startswith(ours) or troubles.append(request.url))
    found.goto(server.address.url)
    found.wait_for_selector(".tile")
    found.wait_for_selector("#filters .values")
    yield found
    assert found.evaluate("window.hacked") is None
    context.close()
    assert troubles == []


def row_of(root: Path, where: str) -> ImageRow:
    return image_rows(read_catalog(root, where, IMAGE_COLUMNS, limit=1))[0]


def choose(page: Page, value: str) -> None:
    page.locator("#filters label", has=page.get_by_text(value, exact=True)).first.click()


def shows(page: Page, text: str) -> None:
    page.locator("#count", has_text=re.compile(f"^{text}$")).wait_for()


def open_key(page: Page, server: Client, key: str) -> None:
    page.goto(f"{server.address.url}&key={key}")
    page.wait_for_selector("#viewer .stage canvas[aria-label]")
    page.locator("#viewer .key", has_text=key).wait_for()
    page.wait_for_selector("#viewer tbody tr")


def until(page: Page, expression: str, argument: object = None) -> None:
    """Wait until JavaScript is true. Asked from outside: the page's policy forbids to evaluate anything inside."""
    for _ in range(200):
        if page.evaluate(expression, argument):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never became true: {expression}")


def drawn(page: Page) -> RGB:
    height, width, values = page.evaluate(READ_CANVAS)
    pixels = np.array(values, np.uint8).reshape(height, width, 4)
    assert (pixels[..., 3] == 255).all()
    return pixels[..., :3]


def opened(page: Page) -> str:
    return page.locator("#viewer .key").inner_text()


def after(page: Page, before: str) -> str:
    until(page, "key => document.querySelector('#viewer .key').textContent !== key", before)
    return opened(page)


# ---- filters and pages


def test_filters_narrow_and_the_back_button_widens(page: Page, root: Path) -> None:
    shows(page, "200 samples")
    assert "token" not in page.url
    choose(page, "CT")
    shows(page, "67 samples")
    assert "is.modality=CT" in page.url
    choose(page, "ABDOMEN")
    expected = run_sql(root, "SELECT key FROM catalog WHERE modality = 'CT' AND body_part = 'ABDOMEN'").num_rows
    shows(page, f"{expected} samples")
    page.go_back()
    shows(page, "67 samples")
    page.get_by_role("button", name="Remove the filter modality: CT").click()
    shows(page, "200 samples")
    page.get_by_label("slice thickness to").fill("2")
    page.get_by_label("slice thickness to").press("Enter")
    shows(page, str(run_sql(root, "SELECT key FROM catalog WHERE slice_thickness <= 2").num_rows) + " samples")
    page.get_by_role("button", name="Clear all filters").click()
    shows(page, "200 samples")


def test_a_condition_is_asked_and_its_mistakes_are_told(page: Page) -> None:
    page.get_by_label("SQL condition").fill("modality = 'MR' AND age_years > 200")
    page.get_by_label("SQL condition").press("Enter")
    shows(page, "no samples")
    page.get_by_text("Nothing found: no sample has age_years > 200").wait_for()
    page.reload()
    shows(page, "no samples")
    page.get_by_label("Another column").select_option("field_strength")
    field = page.get_by_label("field strength from")
    field.wait_for()
    assert field.is_visible()


def test_one_slice_a_series(page: Page, root: Path) -> None:
    page.get_by_label("one slice a series").check()
    expected = run_sql(root, "SELECT DISTINCT series FROM catalog").num_rows
    shows(page, f"{expected} series")
    assert page.locator(".tile").count() == expected


def test_pages_and_the_keyboard(page: Page) -> None:
    assert page.locator(".tile").count() == 60
    first = page.locator(".tile").first.get_attribute("href")
    page.get_by_role("button", name="Next page").click()
    page.get_by_label("Page", exact=True).wait_for()
    until(page, "href => document.querySelector('.tile').getAttribute('href') !== href", first)
    page.get_by_role("button", name="Last page").click()
    until(page, "document.querySelectorAll('.tile').length === 20")
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    at = page.evaluate("[...document.querySelectorAll('.tile')].indexOf(document.activeElement)")
    across = page.evaluate("getComputedStyle(document.querySelector('.grid')).gridTemplateColumns.split(' ').length")
    assert at == 1 + across
    key = page.evaluate("new URLSearchParams(document.activeElement.search).get('key')")
    page.keyboard.press("Enter")
    page.locator("#viewer .key", has_text=key).wait_for()
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#viewer').open")
    assert page.evaluate("[...document.querySelectorAll('.tile')].indexOf(document.activeElement)") == at
    assert "key=" not in page.url


# ---- a slice


@pytest.mark.parametrize(("preset", "window"), [("1", "soft"), ("2", "lung"), ("3", "bone"), ("4", "brain")])
def test_ct_is_shown_in_the_presets_windows(page: Page, server: Client, root: Path, preset: str, window: str) -> None:
    row = row_of(root, "modality = 'CT'")
    open_key(page, server, row.key)
    page.keyboard.press(preset)
    expected = to_display(row, read_images(root, [row])[0], window)
    assert np.abs(drawn(page).astype(int) - expected).max() <= 1
    assert expected.std() > 1


@pytest.mark.parametrize("modality", ["MR", "US"])
def test_others_are_shown_in_their_own_way(page: Page, server: Client, root: Path, modality: str) -> None:
    row = row_of(root, f"modality = '{modality}'")
    open_key(page, server, row.key)
    expected = to_display(row, read_images(root, [row])[0])
    assert np.abs(drawn(page).astype(int) - expected).max() <= 1
    page.keyboard.press("i")
    assert np.abs(255 - drawn(page).astype(int) - expected).max() <= 1


def test_windows_of_any_width_come_from_16_bits(page: Page, server: Client, root: Path) -> None:
    """A window of 10 HU shows more than two greys only where the browser has the values themselves."""
    row = row_of(root, "modality = 'CT'")
    stored = read_images(root, [row])[0]
    open_key(page, server, row.key)
    page.get_by_label("Black at").fill("35")
    page.get_by_label("Black at").press("Enter")
    page.get_by_label("White at").fill("45")
    page.get_by_label("White at").press("Enter")
    share = np.clip((stored.astype(float) - 1024 - 35) / 10, 0, 1)
    assert np.abs(drawn(page)[..., 0].astype(int) - 255 * share).max() <= 1
    assert len(np.unique(drawn(page))) > 8
    before = drawn(page)
    page.get_by_label("Window width").focus()
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert (drawn(page) != before).any()
    page.get_by_role("button", name="Reset").click()
    assert np.abs(drawn(page).astype(int) - to_display(row, stored)).max() <= 1


def test_dragging_sets_the_window(page: Page, server: Client, root: Path) -> None:
    open_key(page, server, row_of(root, "modality = 'CT'").key)
    before = float(page.get_by_label("White at").input_value()), float(page.get_by_label("Black at").input_value())
    box = page.locator("#viewer .stage").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y, steps=4)
    page.mouse.up()
    high, low = float(page.get_by_label("White at").input_value()), float(page.get_by_label("Black at").input_value())
    assert high - low > before[0] - before[1] + 100
    assert abs((high + low) - (before[0] + before[1])) < 10


def test_the_value_under_the_pointer(page: Page, server: Client, root: Path) -> None:
    row = row_of(root, "modality = 'CT'")
    stored = read_images(root, [row])[0]
    open_key(page, server, row.key)
    box = page.locator("#viewer .stage canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * (10.5 / row.width), box["y"] + box["height"] * (20.5 / row.height))
    said = page.locator("#viewer output").inner_text().replace("−", "-").replace(",", "")
    assert said == f"row 20 column 10: {int(stored[20, 10]) - 1024} HU"


def test_through_the_series_with_keys_and_wheel(page: Page, server: Client, root: Path) -> None:
    row = row_of(root, "modality = 'CT'")
    keys = [one["key"] for one in server.get(f"/api/series/{row.key}").json()]
    assert len(keys) == 10
    open_key(page, server, keys[4])
    page.get_by_text("5 of 10 in the series").wait_for()
    page.keyboard.press("3")
    for press, at in [
        ("ArrowDown", 5),
        ("ArrowRight", 6),
        ("ArrowUp", 5),
        ("Home", 0),
        ("ArrowUp", 0),
        ("End", 9),
        ("PageDown", 9),
    ]:
        before = opened(page)
        page.keyboard.press(press)
        assert (opened(page) if keys[at] == before else after(page, before)) == keys[at], press
    page.locator("#viewer .stage").hover()
    page.mouse.wheel(0, -100)
    assert after(page, keys[9]) == keys[8]
    assert f"key={keys[8]}" in page.url
    until(page, "label => document.querySelector('#viewer .stage canvas').ariaLabel.includes(label)", "CT")
    # the window stays: to compare slices is what going through them is for
    assert page.get_by_label("White at").input_value() == "1300"
    shown = image_rows(read_catalog(root, f"key = '{keys[8]}'", IMAGE_COLUMNS))[0]
    until(page, "() => document.querySelector('#viewer .stage canvas').width > 1")
    page.wait_for_timeout(200)
    assert np.abs(drawn(page).astype(int) - to_display(shown, read_images(root, [shown])[0], "bone")).max() <= 1
    page.keyboard.press("Escape")
    until(page, "!document.querySelector('#viewer').open")


def test_the_row_is_shown_and_filters(page: Page, server: Client, root: Path) -> None:
    row = row_of(root, "modality = 'MR'")
    open_key(page, server, row.key)
    cells: Any = page.locator("#viewer tbody tr").evaluate_all(
        "rows => rows.map(r => [r.cells[0].innerText, r.cells[1].innerText])"
    )
    said = dict(cells)
    assert said["collection"] == EVIL
    assert said["series"] == row.series
    assert said["kvp"] if "kvp" in said else "kvp" in page.locator("#viewer .of-row .hint").inner_text()
    page.get_by_role("button", name=f"Only samples with series {row.series}").click()
    shows(page, "10 samples")
    assert not page.locator("#viewer").is_visible()


def test_next_and_previous_of_the_page(page: Page) -> None:
    keys = page.locator(".tile").evaluate_all("tiles => tiles.map(t => new URLSearchParams(t.search).get('key'))")
    page.locator(".tile").nth(3).click()
    page.locator("#viewer .key", has_text=keys[3]).wait_for()
    page.keyboard.press("n")
    assert after(page, keys[3]) == keys[4]
    page.keyboard.press("p")
    assert after(page, keys[4]) == keys[3]


def test_zoom(page: Page, server: Client, root: Path) -> None:
    row = row_of(root, "modality = 'CT'")
    open_key(page, server, row.key)
    page.get_by_role("button", name="One stored pixel a screen pixel").click()
    assert page.locator("#viewer .stage canvas").evaluate("c => [c.clientWidth, c.clientHeight]") == [
        row.width,
        row.height,
    ]
    page.keyboard.press("+")
    assert page.locator("#viewer .stage canvas").evaluate("c => c.clientWidth") == 1.5 * row.width


# ---- what is taken away


def test_the_query_can_be_copied(page: Page, root: Path) -> None:
    choose(page, "CT")
    shows(page, "67 samples")
    page.get_by_text("The query, and saving it as a subset").click()
    page.locator("#query section", has_text="Command line").get_by_role("button").click()
    page.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == f"lumid query {root} \"modality = 'CT'\""


def test_a_subset_can_be_saved(page: Page, root: Path, tmp_path: Path) -> None:
    choose(page, EVIL)
    shows(page, "67 samples")
    page.get_by_text("The query, and saving it as a subset").click()
    with page.expect_download() as waiting:
        page.get_by_text("Save these 67 as a subset").click()
    waiting.value.save_as(tmp_path / "subset.parquet")
    keys = pq.read_table(tmp_path / "subset.parquet")["key"].to_pylist()
    assert keys == read_catalog(root, "modality = 'MR'", ["key"])["key"].to_pylist()


# ---- for everyone


def test_hostile_values_are_texts(page: Page) -> None:
    assert page.locator("#filters").get_by_text(EVIL, exact=True).is_visible()
    choose(page, EVIL)
    shows(page, "67 samples")
    assert page.locator("#chips").inner_text().startswith(f"collection: {EVIL}")
    assert page.locator("img[src='x']").count() == 0


def test_everything_has_a_name(page: Page) -> None:
    page.locator(".tile").first.click()
    page.wait_for_selector("#viewer tbody tr")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a, input, select, img, canvas, svg[role=img], [role=region], dialog')]
        .filter(n => !n.hidden && n.type !== 'hidden').filter(n => !(n.ariaLabel || n.alt || n.textContent?.trim() || n.getAttribute('aria-label')
          || [...(n.labels ?? [])].some(l => l.textContent.trim()))).map(n => n.outerHTML.slice(0, 120))"""
    )
    assert nameless == []
    assert page.evaluate("[...document.querySelectorAll('th')].every(n => n.scope)")
    twice = page.evaluate(
        "[...document.querySelectorAll('[id]')].map(n => n.id).filter((id, i, all) => all.indexOf(id) !== i)"
    )
    assert twice == []


CONTRASTS = """() => {
  const rgb = (text) => (text.match(/[\\d.]+/g) ?? []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (let n = node; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return rgb(getComputedStyle(document.body).backgroundColor); };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !node.checkVisibility() || node.disabled) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) found.push([node.textContent.trim().slice(0, 40), ratio]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_in_light_and_dark(page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.get_by_text("The query, and saving it as a subset").click()
    choose(page, "CT")
    shows(page, "67 samples")
    assert page.evaluate(CONTRASTS) == []
    page.locator(".tile").first.click()
    page.wait_for_selector("#viewer tbody tr")
    assert page.evaluate(CONTRASTS) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in re.findall(r"\d+", ground)) < 200) == (scheme == "dark")


def test_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.get_by_role("button", name="Filters", exact=True).click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    choose(page, "CT")
    shows(page, "67 samples")
    page.get_by_role("button", name="Filters", exact=True).click()
    page.locator(".tile").first.click()
    page.wait_for_selector("#viewer tbody tr")
    assert page.evaluate("document.querySelector('#viewer').scrollWidth") <= 360


def test_a_slice_that_cannot_be_read(browser: Browser, dataset: Path) -> None:
    rows = image_rows(read_catalog(dataset, columns=IMAGE_COLUMNS))
    (dataset / "shards" / rows[0].shard).unlink()
    with running(dataset) as server:
        page = browser.new_page()
        page.goto(server.address.url)
        page.get_by_text("cannot be read").first.wait_for()
        page.goto(f"{server.address.url}&key={rows[0].key}")
        said = page.locator("#viewer").get_by_text("missing or not readable")
        said.wait_for()
        assert said.is_visible()
        page.close()


def test_a_server_that_has_ended(browser: Browser, built: Path) -> None:
    with running(built) as server:
        page = browser.new_page()
        page.goto(server.address.url)
        page.wait_for_selector("#filters .values")
    choose(page, "CT")
    said = page.get_by_text("lumid explore does not answer any more")
    said.wait_for()
    assert said.is_visible()
    page.close()
