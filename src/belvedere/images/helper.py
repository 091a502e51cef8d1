"""A process that works on files for another one: tasks come in by a pipe, and what was found goes out by one.

It ends when its pipe does, so that nobody is left behind however the other process ends. The pools of the standard
library would run a user's unguarded script again, and joblib's stay when their owner is killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from belvedere.errors import UserError

COMMAND = "from belvedere.images.helper import serve; serve()"


class Helper:
    """A process of one's own, for one thread at a time; `close` ends it."""

    def __init__(self) -> None:
        # What can be imported here can be there, and nothing that lies in the current folder by chance.
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **paths, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, work: Callable[..., Any], *given: Any) -> Any:
        """What `work` makes of what is given, all of which can be pickled.

        Raises:
            UserError: that `work` raised.
            EOFError: the process died of it.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((work, given), stdin)
            stdin.flush()
        except BrokenPipeError as error:
            raise EOFError from error
        try:
            found, refused = pickle.load(stdout)
        except pickle.UnpicklingError as error:  # it died while it answered
            raise EOFError from error
        if refused is not None:
            raise UserError(refused)
        return found

    def close(self) -> None:
        """End the process; what it may be working on is lost."""
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Be the process: work on task after task until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to both; the other process decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a decoder prints comes between
    while True:
        try:
            work, given = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        found, refused = None, None
        try:
            found = work(*given)
        except UserError as error:
            refused = str(error)
        try:
            pickle.dump((found, refused), answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:  # nobody is there to hear it
            os._exit(0)
