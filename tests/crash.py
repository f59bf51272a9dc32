"""What a test puts before lumid so that an object kills the process that reads it."""

from __future__ import annotations


def crash_at(module: str, function: str) -> str:
    """Code that has a function of the pipeline, which is given an object's bytes, kill its process over a marked one."""
    return f"""
import os
from lumid.pipeline import {module}
_whole = {module}.{function}
def {function}(data):
    if b"POISON" in data:
        os.kill(os.getpid(), 9)
    return _whole(data)
{module}.{function} = {function}
"""


CRASH = crash_at("parse", "plain_header")
"""A decoder that crashes takes its process with it; here the process is killed when it reads a marked object."""
