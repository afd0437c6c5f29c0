"""A manual page's text without its roff markup: good enough to read, not to typeset."""

from __future__ import annotations

import re

SPECIAL = {"aq": "'", "cq": "'", "oq": "'", "dq": '"', "lq": '"', "rq": '"', "bu": "*", "em": "--", "en": "-"}
SPECIAL |= {
    "hy": "-",
    "mi": "-",
    "ti": "~",
    "ha": "^",
    "rs": "\\",
    "ga": "`",
    "co": "(C)",
    "at": "@",
    "sh": "#",
}
HEADINGS = {"SH", "SS", "Sh", "Ss"}
TEXT_MACROS = {
    "B",
    "I",
    "BI",
    "IB",
    "BR",
    "RB",
    "IR",
    "RI",
    "SM",
    "SB",
    "IP",
    "TP",
    "Nm",
    "Nd",
    "Fl",
    "Ar",
    "Pa",
}
TEXT_MACROS |= {
    "Xr",
    "It",
    "Dq",
    "Sq",
    "Ql",
    "Cm",
    "Em",
    "Sy",
    "Li",
    "Va",
    "Fn",
    "Fa",
    "Op",
    "Ev",
    "Dv",
    "Er",
}
BREAKS = {"PP", "P", "LP", "Pp", "sp", "IP", "TP", "It", "HP"}


def plain_text(page: str) -> str:
    """The words of a manual page. Headings stand alone, and paragraphs are separated by an empty line."""
    lines: list[str] = []
    ignoring = False
    for line in page.splitlines():
        if ignoring:
            ignoring = line.strip() != ".."
        elif line.startswith((".", "'")):
            ignoring = re.match(r"[.']\s*(de|ig)\b", line) is not None
            lines += _macro(line[1:].strip())
        else:
            lines.append(_inline(line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _macro(line: str) -> list[str]:
    name, _, rest = line.partition(" ")
    if name in HEADINGS:
        return ["", _inline(rest.replace('"', "")), ""]
    lines = [""] if name in BREAKS else []
    if name in TEXT_MACROS and rest.strip():
        words = re.findall(r'"([^"]*)"|(\S+)', rest)
        joint = "" if len(name) == 2 and set(name) <= set("BIR") else " "
        lines.append(_inline(joint.join(quoted or bare for quoted, bare in words)))
    return lines


def _inline(line: str) -> str:
    line = re.sub(r"\\\".*$", "", line)
    line = re.sub(r"\\\((..)|\\\[(\w+)\]", lambda m: SPECIAL.get(m[1] or m[2], ""), line)
    line = re.sub(r"\\f(\[\w*\]|\(..|.)|\\s[-+]?\d+|\\[*n](\[\w+\]|\(..|.)|\\[|^&/,:%c]", "", line)
    return line.replace("\\-", "-").replace("\\ ", " ").replace("\\~", " ").replace("\\e", "\\")
