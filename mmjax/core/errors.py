"""The one exception that means "the user can fix this": the command line prints it as a single message, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The message says what was given, where, what was expected and what to do."""


def suggest(given: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `known`, else a list of them; ready to append to a message."""
    known = sorted(known)
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6) or [k for k in known if given and k.startswith(given)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
