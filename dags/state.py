"""What an unfinished build has written of itself, ``build.json``, as far as it can be believed."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from lumid.catalog.errors import DatasetError
from lumid.catalog.json_files import read_json
from lumid.catalog.layout import Layout, write_text
from lumid.catalog.paths import AnyPath

KINDS: dict[str, type] = {
    "recipe_name": str, "recipe_hash": str, "phase": str, "batches": int, "objects": int, "bytes": int, "batch_ids": list, "batch_series": list, "batch_objects": list, "batch_frames": dict,
}  # fmt: skip
FIRST = ("recipe_name", "recipe_hash", "phase", "batches")
"""What is there from the beginning."""
BATCH = re.compile(r"[0-9a-f-]{1,64}")


def read_state(layout: Layout[AnyPath]) -> dict[str, Any]:
    """The values of ``build.json``. Raises :class:`DatasetError` when they are not those of a build."""
    mend = f"remove {layout.work}, and run the same `lumid build` again"
    state = read_json(layout.state, mend)
    wrong = [name for name, kind in KINDS.items() if name in state and type(state[name]) is not kind]
    batches = [] if wrong else state.get("batch_ids", [])
    # they become names of files
    if (
        wrong
        or not state.keys() >= set(FIRST)
        or not all(isinstance(one, str) and BATCH.fullmatch(one) for one in batches)
        or not all(type(one) is int for name in ("batch_series", "batch_objects") for one in state.get(name, ()))
        or not all(
            name.isdecimal() and type(one) is int and one > 0 for name, one in state.get("batch_frames", {}).items()
        )
    ):
        raise DatasetError(f"{layout.state}: is damaged; {mend}")
    return state


def write_state(layout: Layout[AnyPath], **facts: Any) -> None:
    """Update what `lumid status` reads."""
    state = read_state(layout) if layout.state.is_file() else {"started": time.time()}
    write_text(layout.state, json.dumps(state | facts) + "\n")
