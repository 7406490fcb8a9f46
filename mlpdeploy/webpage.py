"""Pages to look at: one HTML file, no script, nothing from elsewhere, light or dark as the reader's device has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1d2329; --muted: #6a737d; --line: #dde1e5; --back: #ffffff; --card: #f6f7f8;
  --c0: #5b6673; --c1: #1f6fb4; --c2: #c25e00; --c3: #2a8a57; --c4: #8a4fb5; --c5: #b8384e; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ec; --muted: #97a1ab; --line: #3a424a; --back: #14181c;
  --card: #1d2227; --c0: #a5b0bb; --c1: #58a6e8; --c2: #f0954a; --c3: #58c48c; --c4: #bd8fe0; --c5: #ef7a8c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--text);
  font: 16px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } h3 { font-size: .95rem; margin: 0 0 .5rem; }
p, li { max-width: 46rem; } .note { color: var(--muted); font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; overflow-wrap: normal; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.card { background: var(--card); border-radius: .5rem; padding: .8rem; min-width: 0; }
svg { display: block; width: 100%; height: auto; max-width: 34rem; font-family: system-ui, sans-serif; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
.legend svg { display: inline-block; width: 1em; vertical-align: -.1em; }
"""


def page(title: str, body: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: plain text.
        body: parts as markup, in which every text from a file or a user is escaped; empty parts are left out.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """Return a table that scrolls sideways; the first `texts` columns are flush left."""

    def row(values: Sequence[str], tag: str) -> str:
        kinds = [' class="text"' if index < texts else "" for index in range(len(values))]
        return "".join(f"<{tag}{kind}>{escape(value)}</{tag}>" for kind, value in zip(kinds, values, strict=True))

    lines = "".join(f"<tr>{row(values, 'td')}</tr>" for values in rows)
    return f'<div class="wide"><table><thead><tr>{row(head, "th")}</tr></thead><tbody>{lines}</tbody></table></div>'
