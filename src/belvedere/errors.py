"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(Exception):
    """A mistake of the user's, told in one line that names the file or option and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """
