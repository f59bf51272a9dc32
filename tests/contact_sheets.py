"""Contact sheets of every real image at hand, one a modality and profile, to be looked at.

    LUMID_REAL_IMAGES=… python -m tests.contact_sheets OUT [FOLDER …]

Images take the whole path of a build: what is rejected is not shown but counted. Without folders: pydicom's test files
and the real images. Of a series at most three slices are shown.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from lumid.catalog.codecs import decode, encode
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.show import ImageRow, Tile, contact_sheet, make_tile
from lumid.pipeline.batches import make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.ingest import ingest
from lumid.pipeline.normalize import PROFILE_BITS
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.samples import Sample
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import open_listed
from tests.dicom import SHARED, TEST_FILES

MOST_OF_A_SERIES, MOST = 3, 72
KEYER = Keyer(PUBLIC_SECRET)


def samples(folder: Path, profile: str, rejects: Counter[str]) -> Iterator[Sample]:
    recipe = make_recipe(folder, collection="sheet")
    recipe = recipe.model_copy(
        update={
            "deid": recipe.deid.model_copy(update={"policy": "public"}),
            "pixels": recipe.pixels.model_copy(update={"profile": profile}),
            "sources": (recipe.sources[0].model_copy(update={"names": "plain", "modality": "MR"}),),
        }
    )
    listed = open_listed(recipe.sources[0], recipe, KEYER)
    series = group_series(scan(listed, listed.objects(), KEYER, "public"), listed.provenance)
    for batch in make_batches(series, 0, recipe.hash(), 1000):
        result = ingest(batch, listed, recipe, KEYER)
        rejects.update(row.code for row in result.rejects)
        yield from result.samples


def tiles(folders: list[Path], profile: str, rejects: Counter[str]) -> dict[str, list[Tile]]:
    by_series: defaultdict[tuple[str, str], list[Sample]] = defaultdict(list)
    for folder in folders:
        for sample in samples(folder, profile, rejects):
            by_series[sample.row.modality, sample.row.series].append(sample)
    shown: defaultdict[str, list[Tile]] = defaultdict(list)
    for (modality, _), members in sorted(by_series.items()):
        ordered = sorted(members, key=lambda one: (one.row.slice_index or 0, one.row.frame))
        step = max(1, len(ordered) // MOST_OF_A_SERIES)
        for sample in ordered[step // 2 :: step][:MOST_OF_A_SERIES]:
            row = ImageRow(
                **{item.name: getattr(sample.row, item.name) for item in fields(ImageRow) if item.name != "shard"},
                shard="",
            )
            made = make_tile(row, decode(sample.image, sample.row.codec), 192)
            name = Path(sample.row.source_id).name[-14:]
            shown[modality].append(
                Tile(
                    made.image, f"{row.intensity_unit} {row.p01:.4g}..{row.p99:.4g}", f"{row.width}x{row.height} {name}"
                )
            )
    return shown


def main(out: Path, folders: list[Path]) -> None:
    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    for profile in PROFILE_BITS:
        rejects: Counter[str] = Counter()
        for modality, made in tiles(folders, profile, rejects).items():
            path = out / f"{modality}-{profile}.png"
            path.write_bytes(encode(contact_sheet(made[:MOST], 9), "png"))
            print(f"{path}: {len(made[:MOST])} of {len(made)} pictures")
        print(f"{profile}: rejected {dict(rejects.most_common())}")


if __name__ == "__main__":
    main(
        Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]] or [one for one in (TEST_FILES, SHARED) if one.is_dir()]
    )
