"""What a user is told is one line that commands nothing to the terminal."""

from __future__ import annotations

from belvedere.errors import UserError, printable


def test_names_of_files_stay_on_their_line_and_command_nothing() -> None:
    name = "a\x1b[2J\x9b31m\r\n\tb\u202egnp.\x00"
    assert str(UserError(f"{name}: is broken")) == r"a\x1b[2J\x9b31m \tb\u202egnp.\x00: is broken"
    told = "H\N{LATIN SMALL LETTER O WITH DIAERESIS}hle \N{CAT FACE} \udcff.png"
    assert printable(told) == told
