"""HTML and reStructuredText as plain text."""

import re
from html.parser import HTMLParser

# Of HTML and of OSIS, the XML of Bible software: no space round them.
_INLINE = frozenset(
    "a abbr b cite code em foreign hi i q reference small span strong sub sup "
    "tt u w".split()
)
_HIDDEN = frozenset(["head", "script", "style"])


def html_text(markup: str) -> str:
    """The text that a page shows, without its tags.

    Args:
        markup: HTML, or XML with few names of its own (OSIS).

    Returns:
        The text; its white space means nothing.
    """
    reader = _TextOfHtml()
    reader.feed(markup)
    reader.close()
    return "".join(reader.parts)


class _TextOfHtml(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts = []
        self._hidden = 0

    def handle_starttag(self, tag, attrs):
        self._hidden += tag in _HIDDEN
        self._separate(tag)

    def handle_endtag(self, tag):
        self._hidden -= tag in _HIDDEN and self._hidden > 0
        self._separate(tag)

    def handle_startendtag(self, tag, attrs):
        self._separate(tag)

    def handle_data(self, data):
        if not self._hidden:
            self.parts.append(data)

    def _separate(self, tag):
        if tag not in _INLINE:
            self.parts.append(" ")


# What these say and hold is for the machine, not for the reader.
_SILENT = frozenset(
    "audit-event c:namespace contents cssclass currentmodule figure highlight "
    "image include index kernel-doc kernel-feat kernel-figure kernel-include "
    "kernel-render literalinclude meta module moduleauthor only program raw "
    "sectionauthor tabularcolumns testcleanup testsetup toctree".split()
)
_SPOKEN = {
    "versionadded": "New in version ",
    "versionchanged": "Changed in version ",
    "deprecated": "Deprecated since version ",
}
_DIRECTIVE = re.compile(r"\.\. (?:\|[^|]+\| )?([\w:-]+?) ?::(?:\s+(.*))?$")
_FOOTNOTE = re.compile(r"\.\. \[[^\]]+\] ")
_OPTION = re.compile(r"\s+:[\w-]+:")
# Underlines of titles, borders of tables.
_RULE = re.compile(r"[-=~^\"'`*+#.:_|\s]{3,}$")
_INLINE_MARKUP = (
    # :role:`text <target>`, `text <target>`_
    (re.compile(r"(?::[\w:+-]+:)?`([^`<]+?)\s*<[^`>]+>`(?:__?)?"), r"\1"),
    # Roles before all else: a stray backquote must not pair with one of theirs.
    (re.compile(r":[\w:+-]+:`[~!]?([^`]+)`"), r"\1"),
    (re.compile(r"``([^`]+)``"), r"\1"),
    (re.compile(r"`([^`\n]+)`(?:__?)?"), r"\1"),
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"(?<![\w*])\*(\w(?:[^*\n]*\w)?)\*(?![\w*])"), r"\1"),
    (re.compile(r"\\([*`_|])"), r"\1"),
    (re.compile(r"::$", re.MULTILINE), ":"),
    # In the cells of tables.
    (re.compile(r"([-|] +)\.\. [\w:-]+:: "), r"\1"),
)


def rst_text(markup: str) -> str:
    """reStructuredText as a reader sees it, about.

    Directives that show nothing go, with what they hold; of the others the
    argument and the content stay, code included. Comments, labels, underlines
    of titles, borders of tables and inline markup go.

    Args:
        markup: the source of a page.

    Returns:
        The text, line for line.
    """
    lines = "\n".join(_visible_lines(markup.splitlines()))
    for pattern, replacement in _INLINE_MARKUP:
        lines = pattern.sub(replacement, lines)
    return lines


def _visible_lines(lines):
    silent = None  # the indent of the block that is left out
    options = False  # whether options of a directive may follow
    for line in lines:
        body = line.lstrip()
        indent = len(line) - len(body)
        if silent is not None and (not body or indent > silent):
            continue
        silent = None
        if options and _OPTION.match(line):
            continue
        options = False
        if body == ".." or body.startswith(".. "):
            directive = _DIRECTIVE.match(body)
            if directive and directive[1].lower() not in _SILENT:
                options = True
                yield _SPOKEN.get(directive[1], "") + (directive[2] or "")
            elif footnote := _FOOTNOTE.match(body):
                yield body[footnote.end() :]
            else:
                silent = indent
        elif not _RULE.match(body):
            yield line
