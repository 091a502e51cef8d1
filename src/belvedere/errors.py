"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's, told in one line that names the file or option and what to do.

    The command line prints the message without a traceback and exits with code 2. It stays one line where a file's name
    or a word of the command line has several.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))
