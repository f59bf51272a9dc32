"""Errors that a user can mend, and the exit code each of them ends the command line with."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REJECTS = 3


class LumidError(Exception):
    """Something the user can mend: one line that says what was wrong, where, and what to do.

    Its text is shown as it is and may be logged, so it never holds the content of an image header.
    """

    exit_code = EXIT_FAILED


class UsageError(LumidError):
    """The command was called in a way that cannot work: wrong option, wrong folder, wrong column."""

    exit_code = EXIT_USAGE


class RecipeError(UsageError):
    """A recipe that does not say what it must; names the file, the key and what is allowed."""


class DatasetError(LumidError):
    """A folder that is not a finished, readable data set."""


class StorageError(LumidError):
    """The disk refused: full, read-only or gone."""


class AccountingError(LumidError):
    """A build that cannot account for every frame it planned; a defect in lumid, never in the input."""
