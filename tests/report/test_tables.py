from __future__ import annotations

import unicodedata

import pytest

from adapruner.report.tables import Cell, TextTable, latex


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\\input{/etc/passwd}", "\\textbackslash{}input\\{/etc/passwd\\}"),
        ("[2cm] a*", "{[}2cm{]} a{*}"),  # at the beginning of a row the end of the one before would take it for its argument
        ('a|b "q" `c', "a\\textbar{}b {\\char34}q{\\char34} \\textasciigrave{}c"),
        ("Kovács, Müller, Łódź", "Kovács, Müller, Łódź"),
        (unicodedata.normalize("NFD", "Müller"), "Müller"),
        ("\N{GREEK SMALL LETTER BETA}", "\\texttt{U+03B2}"),
        ("a\N{GRINNING FACE}b", "a\\texttt{U+1F600}b"),
        ("x\x07\N{RIGHT-TO-LEFT OVERRIDE}y", "x\\texttt{U+0007}\\texttt{U+202E}y"),
        ("two\nlines\tand\N{EM SPACE}more", "two lines and more"),
    ],
)
def test_no_name_ends_a_run_of_latex(text: str, written: str) -> None:
    assert latex(text) == written


def test_a_row_that_begins_with_a_bracket() -> None:
    table = TextTable("t", ("[x]",), ((Cell("[y]"),),))
    assert not any(line.startswith(("[", "*")) for line in table.to_latex().splitlines())
