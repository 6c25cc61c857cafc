"""The shell that every page shares: light and dark, readable on a phone. Pure: no torch."""

from __future__ import annotations

from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --soft: #f3f4f6; --line: #d7dbe0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #15181c; --soft: #20252b; --line: #39414b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 780px; padding: 24px 16px 64px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 4px; } h2 { font-size: 1.15rem; margin: 36px 0 8px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 8px;
  margin: 16px 0; padding: 0; }
.facts div { background: var(--soft); border-radius: 8px; padding: 10px 12px; }
.facts dt { font-size: .8rem; opacity: .75; } .facts dd { margin: 0; font-size: 1.15rem; }
svg { width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
@media (max-width: 600px) { svg text { font-size: 20px; } }
.grid { stroke: var(--line); } .line, .faint, .thin { fill: none; stroke-width: 2; }
.thin, .bar { stroke-width: 1; }
.faint { opacity: .25; stroke-width: 1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0;
  margin: 4px 0; font-size: .85rem; }
.legend i { display: inline-block; width: 16px; height: 0; margin-right: 6px;
  vertical-align: middle; }
.answer { display: flex; gap: 12px; padding: 10px 0; border-top: 1px solid var(--line); }
.answer img { width: 96px; height: 96px; object-fit: contain; background: var(--soft);
  border-radius: 6px; }
.answer p { margin: 0 0 2px; overflow-wrap: anywhere; } .label { opacity: .7; font-size: .85rem; }
pre { overflow-x: auto; background: var(--soft); padding: 12px; border-radius: 8px;
  font-size: .8rem; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """A whole HTML page.

    Args:
        title: Its title, as plain text.
        body: Its content, as HTML.
        style: More CSS, after that of all pages.

    Example:
        >>> page("a < b", "<p>hello</p>").count("a &lt; b")
        1
    """
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )
