import pytest

from keras_switch.data.markup import html_text, rst_text


def words(text):
    return " ".join(text.split())


def test_html_keeps_what_a_page_shows():
    page = (
        "<html><head><title>Tab</title></head><body><h1>Caf&eacute;</h1>"
        "<script>if (a < b) run()</script><p>anti<b>dis</b>establish, R&amp;D"
        "<br/>next</p><ul><li>one<li>two</ul></body></html>"
    )
    assert words(html_text(page)) == (
        "Caf\u00e9 antidisestablish, R&D next one two"
    )


def test_osis_is_read_as_html_is():
    chapter = (
        '<div sID="g1" type="x-p"/>Verse 1.<div eID="g1" type="x-p"/>'
        '<div sID="g2"/>See <reference osisRef="Ps.2">Psalm 2</reference>.'
    )
    assert words(html_text(chapter)) == "Verse 1. See Psalm 2."


def test_rst_drops_what_is_for_the_machine():
    page = """\
.. SPDX-License-Identifier: GPL-2.0
.. _label:

=====
Title
=====

.. toctree::
   :maxdepth: 2

   hidden

.. note::
   Kept.

.. function:: f(x)
   :noindex:

   What f does.

.. versionadded:: 3.8
.. [1] A footnote.

======\t=====
cell\tother
======\t=====
End.
"""
    assert words(rst_text(page)) == (
        "Title Kept. f(x) What f does. New in version 3.8 A footnote. "
        "cell other End."
    )


@pytest.mark.parametrize(
    "markup, text",
    [
        (":func:`map` and :class:`~a.B`", "map and a.B"),
        ("a ` alone, :exc:`One` or :exc:`Two`", "a ` alone, One or Two"),
        (":ref:`the page <label>`", "the page"),
        ("`site\n<https://x.org>`_", "site"),
        ("``f(0)`` and ``two\nlines``", "f(0) and two\nlines"),
        ("**bold** and *more*", "bold and more"),
        ("int *a, *b; x = a*b*c", "int *a, *b; x = a*b*c"),
        (r"\*args", "*args"),
        ("for example::", "for example:"),
        ("* - .. data:: NAME", "* - NAME"),
    ],
)
def test_rst_inline_markup(markup, text):
    assert rst_text(markup) == text


def test_a_hidden_block_ends_with_its_indent():
    page = "  .. index:: one\n\n     deep\n\n  shown\n.. comment\nagain"
    assert words(rst_text(page)) == "shown again"
