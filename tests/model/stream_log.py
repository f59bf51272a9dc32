"""A process that streams and writes down what it got, batch by batch, until it is killed."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from torch.utils.data import DataLoader

from lumid.model.stream import ImageStream, StreamSettings, StreamState, select


def main(data: str, out: str, state: str, access: str, rank: int, world: int, workers: int, global_batch: int) -> None:
    settings = StreamSettings(
        global_batch // world, rank=rank, world=world, access=access, lanes=4, block_mb=0.02, window_mb=0.24
    )
    stream = ImageStream(select(Path(data)), settings, StreamState(**json.loads(state)))
    batches = DataLoader(stream, batch_size=None, num_workers=workers) if workers else stream
    with Path(out).open("w") as log:
        for batch in batches:
            log.write(json.dumps({"state": asdict(batch.state), "keys": batch.keys}) + "\n")
            log.flush()
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:5], *map(int, sys.argv[5:]))  # type: ignore[arg-type]
