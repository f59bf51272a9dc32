"""What a test puts before lumid so that an object kills the process that reads it."""

CRASH = """
import os
from lumid.pipeline import parse
_walk = parse.plain_header
def walk(data):
    if b"POISON" in data:
        os.kill(os.getpid(), 9)
    return _walk(data)
parse.plain_header = walk
"""
"""A decoder that crashes takes its process with it; here the process is killed when it reads a marked object."""
