"""What `lumid explore` takes to answer: a page, its filters, a slice; the catalog held in memory against read from disk.

    python benchmarks/explore.py [SAMPLES]

Processor time of one answer, and ratios; wall time too, of what a person waits for. With playwright and a Chromium, from a
click to the drawn slice as well.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumid.catalog.explore import questions
from lumid.catalog.explore.images import stored_bytes, thumbnail_jpeg
from lumid.catalog.explore.questions import Explorer
from lumid.catalog.explore.server import FACETS
from lumid.catalog.explore.view import parse_view
from lumid.catalog.query import read_catalog
from lumid.catalog.show import IMAGE_COLUMNS, image_rows, read_images
from tests import factory
from tests.catalog.explore_server import Client, running

SIDE = 512
ROUNDS = 15


def make(root: Path, samples: int) -> None:
    """Slices of 256 x 272 pixels but for the first hundred, which are of the data set's full size; as the builder encodes them."""
    drawn = factory.make_image
    made = 0

    def image(rng, modality, side=0):
        nonlocal made
        made += 1
        return drawn(rng, modality, SIDE if made <= 100 else SIDE // 4)

    sample = factory.make_sample

    def encoded(modality, number, pixels, codec):
        from dataclasses import replace

        row, data = sample(modality, number, pixels, codec)
        return replace(row, slice_index=number % factory.SLICES_PER_SERIES), data

    factory.make_image, factory.make_sample, factory.SLICES_PER_SERIES = image, encoded, 40
    factory.make_dataset(root, n=samples, shards=8, codec="jhc")


def measure(work: Callable[[], object]) -> tuple[float, float]:
    """Median processor and wall time of a call, in ms; threads of the database are counted."""
    work()
    processor, wall = [], []
    for _ in range(ROUNDS):
        begun, spent = time.perf_counter(), time.process_time()
        work()
        processor.append(1e3 * (time.process_time() - spent))
        wall.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(processor), statistics.median(wall)


def answers(root: Path) -> None:
    everything, some = parse_view([]), parse_view([("is.modality", "CT"), ("to.slice_thickness", "3")])
    key = read_catalog(root, "modality = 'CT'", ["key"], limit=1)["key"][0].as_py()
    asked: dict[str, Callable[[Explorer], object]] = {
        "page": lambda explorer: explorer.page(everything, 3),
        "page of a selection": lambda explorer: explorer.page(some, 1),
        "filters": lambda explorer: explorer.facets(some, FACETS),
        "one sample's row": lambda explorer: explorer.sample(key),
        "a series": lambda explorer: explorer.series_of(key),
    }
    print(f"{'answer':22} {'in memory':>12} {'from disk':>12} {'ratio':>7}   (ms of processor; wall in brackets)")
    held = Explorer(root)
    questions.HELD_ROWS = 0
    read = Explorer(root)
    for name, ask in asked.items():
        (fast, fast_wall), (slow, slow_wall) = (measure(lambda one=one, ask=ask: ask(one)) for one in (held, read))
        print(f"{name:22} {fast:5.1f} ({fast_wall:4.0f}) {slow:5.1f} ({slow_wall:4.0f}) {slow / fast:7.1f}")


def slices(root: Path, client: Client) -> None:
    rows = image_rows(read_catalog(root, f"greatest(width, height) > {SIDE}", IMAGE_COLUMNS, limit=40))
    turn = iter(rows * 20)
    client.get(f"/api/samples?where=width>{SIDE}")
    decoded, _ = measure(lambda: read_images(root, [next(turn)]))
    stored, _ = measure(lambda: stored_bytes(root, next(turn)))
    thumb, _ = measure(lambda: thumbnail_jpeg(root, next(turn)))
    served, wall = measure(lambda: client.get(f"/pixels/{next(turn).key}"))
    print(f"\na slice of {rows[0].width} × {rows[0].height}: read and decoded in {decoded:.1f} ms")
    for name, one in (("its bytes", stored), ("its thumbnail", thumb), ("over HTTP", served)):
        print(f"  {name:22} {one:5.1f} ms of processor, {one / decoded:.2f} of that")
    print(f"  over HTTP, wall        {wall:5.1f} ms")


def in_a_browser(client: Client) -> None:
    import pytest

    from tests.catalog.browser import chromium

    try:
        with chromium() as browser:
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            page.goto(f"{client.address.url}&where=width>{SIDE}")
            page.wait_for_selector(".tile")
            page.wait_for_load_state("networkidle")
            times = page.evaluate(OPEN)
            steps = page.evaluate(STEP)
    except pytest.skip.Exception as reason:
        print(f"\nnot measured in a browser: {reason}")
        return
    print("\nin Chromium, wall, ms: median and 90 %")
    for name, found in (("click → slice drawn", times), ("arrow → next slice", steps)):
        print(f"  {name:22} {statistics.median(found):5.0f} {sorted(found)[int(0.9 * len(found))]:5.0f}")


DRAWN = """
  const canvas = () => document.querySelector('#viewer .stage canvas');
  // the label of a slice is written in the same turn as its pixels
  const drawn = async (act) => {
    const begun = performance.now();
    const changed = new Promise((done) => new MutationObserver((_, observer) => { observer.disconnect(); done(); })
      .observe(canvas(), { attributes: true, attributeFilter: ['aria-label'] }));
    act();
    await changed;
    return performance.now() - begun;
  };
"""
OPEN = f"""async () => {{ {DRAWN}
  const times = [];
  for (const tile of [...document.querySelectorAll('.tile')].slice(0, 25)) {{
    times.push(await drawn(() => tile.click()));
    document.querySelector('#viewer .close').click();
    await new Promise((done) => setTimeout(done, 150));
  }}
  return times;
}}"""
STEP = f"""async () => {{ {DRAWN}
  document.querySelector('.tile').click();
  await new Promise((done) => setTimeout(done, 600));
  const stage = document.querySelector('#viewer .stage');
  const key = (name) => stage.dispatchEvent(new KeyboardEvent('keydown', {{ key: name, bubbles: true }}));
  key('Home');
  await new Promise((done) => setTimeout(done, 600));
  const times = [];
  for (let step = 0; step < 20; step += 1) {{
    times.push(await drawn(() => key('ArrowDown')));
    await new Promise((done) => setTimeout(done, 60));
  }}
  return times;
}}"""


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "ds"
        make(root, samples)
        print(f"{samples:,} samples")
        answers(root)
        questions.HELD_ROWS = 50_000
        with running(root) as client:
            slices(root, client)
            in_a_browser(client)


if __name__ == "__main__":
    main()
