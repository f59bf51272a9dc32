"""The tasks that encoders are judged by, one file each. A task is a function that returns :class:`Task`."""

from __future__ import annotations

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.places import Anywhere
from lumid.model.evaluate.tasks.base import Task
from lumid.model.evaluate.tasks.catalog import body_part, modality, plane
from lumid.model.evaluate.tasks.chest import chest_xray14
from lumid.model.evaluate.tasks.medmnist import medmnist
from lumid.model.evaluate.tasks.polyps import cvc_clinicdb
from lumid.model.evaluate.tasks.quality import ct_quality, mr_quality
from lumid.model.evaluate.tasks.scanners import ct_scanners
from lumid.model.evaluate.tasks.table import from_table

Make = Callable[[Anywhere | None], Task]
TASKS: dict[str, Make] = {
    "modality": modality,
    "body-part": body_part,
    "plane": plane,
    "mr-quality": mr_quality,
    "ct-quality": ct_quality,
    "chestxray14": chest_xray14,
    "ct-scanners": ct_scanners,
}
"""Tasks by name. Each takes the data set that was named on the command line, or None, and checks what it is given."""
OF_FILES: dict[str, Callable[[str], Task]] = {
    "cvc-clinicdb": lambda folder: cvc_clinicdb(Path(folder)),
    "medmnist": medmnist,
    "csv": lambda path: from_table(Path(path)),
}
"""Tasks of files: what stands before the colon, and what is made of what stands after it."""


def load_task(spec: str, data: Anywhere | None) -> Task:
    """A task by its name, ``csv:FILE`` for a table of images and labels, ``cvc-clinicdb:FOLDER``, ``medmnist:NAME``, or a
    Python file with a function ``task(data)``.

    Raises :class:`UsageError` for anything else, and what the task itself raises when its data are not there or not sound.
    """
    if spec in TASKS:
        return TASKS[spec](data)
    kind, colon, what = spec.partition(":")
    if colon and kind in OF_FILES:
        return OF_FILES[kind](what)
    path = Path(spec)
    if path.suffix == ".py":
        return _of_file(path, data)
    raise UsageError(
        f"{spec}: no such task; there are {', '.join(TASKS)}, cvc-clinicdb:FOLDER, medmnist:NAME, csv:FILE, and FILE.py "
        "with a function task(data)"
    )


def _of_file(path: Path, data: Anywhere | None) -> Task:
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    found = importlib.util.spec_from_file_location(f"lumid_task_{path.stem}", path)
    assert found is not None, "a .py file has a loader"
    assert found.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
        task = module.task(data)
    except LumidError:
        raise
    except Exception as error:  # whatever another's code raises; its text may quote anything
        lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if Path(one.filename) == path]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = f"{path}, line {line}" if line else str(path)
        raise UsageError(
            f"{where}: {type(error).__name__}; a task is a function task(data) that returns a Task"
        ) from None
    if not isinstance(task, Task):
        raise UsageError(f"{path}: its task(data) returns {type(task).__name__}, not a Task")
    return task


__all__ = ["TASKS", "Make", "Task", "load_task"]
