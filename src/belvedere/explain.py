"""A value of the wrong kind in one clause: `must be at least 1 or 'auto' (given: 0)`."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic_core import ErrorDetails

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "dict": "a mapping",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def explain(errors: Sequence[ErrorDetails]) -> str:
    """What one value must be instead, from all that pydantic says of it: one error for each kind that it may have."""
    if any(isinstance(error["loc"][-1], int) for error in errors):
        # To pydantic a list without its wrong entries is too short as well; what is wrong are the entries.
        errors = [error for error in errors if error["type"] != "too_short"]
    missing = [int(error["loc"][-1]) + 1 for error in errors if error["type"] == "missing"]
    phrases = [f"a list of {max(missing)}"] if missing else []
    phrases += [_phrase(error) for error in errors if error["type"] != "missing"]
    # Literals ('auto') come last: they read as the exception that they are.
    wanted = sorted(dict.fromkeys(phrases), key=lambda phrase: phrase.startswith("'"))
    given = min(errors, key=lambda error: len(error["loc"]))["input"]
    either = " or ".join(part for part in (", ".join(wanted[:-1]), wanted[-1]) if part)
    return f"must be {either} (given: {'none' if given is None else repr(given)})"


def _phrase(error: ErrorDetails) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        phrase = f"{words} {context[name]:g}"
    elif kind == "literal_error":
        phrase = str(context["expected"])
    elif kind == "value_error":
        phrase = str(context["error"])
    elif kind in ("too_long", "too_short"):
        phrase = f"a list of {context.get('max_length', context.get('min_length'))}"
    else:
        phrase = _KINDS.get(kind.partition("_")[0], error["msg"].removeprefix("Input should be "))
    return f"a list in which each is {phrase}" if isinstance(error["loc"][-1], int) else phrase
