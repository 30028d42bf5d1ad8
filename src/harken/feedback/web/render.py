"""Text by models and strangers as safe HTML: Markdown without HTML, cleaned, with invisible characters made visible."""

import re
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markupsafe import Markup, escape

MAX_RICH = 60_000
"""Longer texts are shown as they are: Markdown of that size takes too long to make, and to read."""

# Directional overrides and isolates, zero-width characters, soft hyphen, tags, separators, controls.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\U000e0000-\U000e007f]"
    # Joiners belong into many scripts and into emoji; beside ASCII they only hide something.
    "|(?:(?<=[\x00-\x7f])|^)[\u200c\u200d]|[\u200c\u200d](?=[\x00-\x7f]|$)"
)
_TAGS = {
    "a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
}  # fmt: skip

_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])


def plain(text: str) -> Markup:
    """Return text as it is, with characters that cannot be seen shown as their code."""
    return Markup("").join(
        Markup('<span class="invisible">U+{:04X}</span>').format(ord(piece)) if is_hidden else escape(piece)
        for piece, is_hidden in _pieces(text)
    )


@lru_cache(maxsize=512)
def rich(text: str) -> Markup:
    """Return Markdown as HTML that can do nothing: no scripts, images, styles or attributes but the target of links."""
    if len(text) > MAX_RICH:
        return Markup("<p>{}</p>").format(plain(text))
    html = _MARKDOWN.render(text)
    html = _INVISIBLE.sub(lambda found: f'<span class="invisible">U+{ord(found.group()):04X}</span>', html)
    # Last, so that whatever the steps before made of the text is cleaned too.
    clean = nh3.clean(
        html,
        tags=_TAGS,
        attributes={"a": {"href"}},
        allowed_classes={"span": {"invisible"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return Markup(clean)


def _pieces(text: str) -> list[tuple[str, bool]]:
    pieces: list[tuple[str, bool]] = []
    end = 0
    for found in _INVISIBLE.finditer(text):
        pieces += [(text[end : found.start()], False), (found.group(), True)]
        end = found.end()
    return [*pieces, (text[end:], False)]
