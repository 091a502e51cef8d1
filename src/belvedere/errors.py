"""The one exception that means: the user can mend this."""

from __future__ import annotations

import re

# What moves a terminal's cursor, changes its colours or turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class UserError(Exception):
    """A mistake of the user's, told in one line that names the file or option and what to do.

    The command line prints the message without a traceback and exits with code 2. It stays one line, and commands
    nothing to the terminal, where a file's name or a word of the command line has several lines or control characters.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(" ".join(message.splitlines())))


def printable(line: str) -> str:
    """A line with control characters written out as Python escapes them: names of files may be meant to do harm."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), line)
