"""The pages of the product as tests see them: blocks, commands, links, anchors and figures, without any tool of documents."""

import ast
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ADDRESSES = ("http://", "https://", "mailto:")
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: what the fence says it is, its text, and whether the line above it says ``<!-- long -->``."""

    page: str
    line: int
    language: str
    text: str
    long: bool

    @property
    def where(self):
        return f"{self.page}:{self.line}"


def pages():
    """README, and every page of docs/."""
    return [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]


@cache
def text_of(path):
    return path.read_text(encoding="utf-8")


def blocks(path):
    text = text_of(path)
    return [
        Block(
            path.name, text.count("\n", 0, found.start()) + 1, found[1].strip(), found[2],
            text[: found.start()].rstrip().endswith("<!-- long -->"),
        )
        for found in _FENCE.finditer(text)
    ]  # fmt: skip


def prose(path):
    """A page without its fenced blocks, whose lines are left empty."""
    return _FENCE.sub(lambda found: "\n" * found[0].count("\n"), text_of(path))


def codes(path):
    """What stands between single backticks, with its line; a code may go over the end of a line, and tables escape ``|``."""
    text = prose(path)
    return [
        (text.count("\n", 0, found.start()) + 1, " ".join(found[2].replace("\\|", "|").split()))
        for found in re.finditer(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", text, re.DOTALL)
    ]


def plain(path):
    """A page without blocks and codes."""
    return re.sub(
        r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)",
        lambda found: "\n" * found[0].count("\n"),
        prose(path),
        flags=re.DOTALL,
    )


def lines_of(block):
    """The commands of a block, one a line: joined where a line ends in a backslash, without comments."""
    joined = re.sub(r"\\\n\s*", " ", block.text)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def words_of(line):
    return shlex.split(line, comments=True)


def links(path):
    """Targets of links, with their lines."""
    text = prose(path)
    found = re.finditer(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", lambda code: "x" * len(code[0]), text))
    return [(text.count("\n", 0, one.start()) + 1, one[1]) for one in found]


def anchor(heading):
    """The name that a heading is linked by, as GitHub and the docs tool make it."""
    kept = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return kept.replace(" ", "-")


@cache
def sections(path):
    """Text of every section by its anchor, that of sections below it included; two of one heading are numbered."""
    text = text_of(path)
    bare = _FENCE.sub(lambda found: "\n".join(" " * len(line) for line in found[0].split("\n")), text)
    heads = [(len(one[1]), one[2], one.start()) for one in re.finditer(r"^(#{1,6}) (.+)$", bare, re.MULTILINE)]
    made = {}
    for number, (depth, heading, start) in enumerate(heads):
        ends = [place for level, _, place in heads[number + 1 :] if level <= depth]
        name, times = anchor(heading), 0
        while (f"{name}-{times}" if times else name) in made:
            times += 1
        made[f"{name}-{times}" if times else name] = text[start : ends[0] if ends else len(text)]
    return made


def quotes(path):
    """The quotations of a page, each in one line."""
    found = re.findall(r"(?:^> .*\n?)+", prose(path), re.MULTILINE)
    return [" ".join(quote.replace("\n> ", "\n")[2:].split()) for quote in found]


@cache
def messages():
    """Every text in the code, one line each, with ``…`` for what is put into it."""
    made = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
                made.add(re.sub("…+", "…", " ".join(text.split())))
    return made


_UNIT = (
    r"(?:\s|-)?(?:%|per cent|points?\b|times\b|images/s|images a second|rows/s|seconds?\b|s\b|ms\b|minutes?\b|min\b|hours?\b|h\b|"
    r"days?\b|[KMGT]i?B\b|[TG]FLOP/s|watts?\b)"
)
FIGURE = re.compile(rf"(?<![\w.,/-])(\d[\d,]*\.\d+(?!\w)|\d[\d,]*(?={_UNIT}))({_UNIT})?", re.IGNORECASE)
"""What may be a measurement: a number with a fraction, or one with a unit of time, size, rate or share."""
_RECORDS = re.compile(r"\((?:docs/)?((?:records|log)\.md)(?:#([^)\s]+))?\)")


def figures_without_source(path, folder=DOCS):
    """Figures of a page, by paragraph or row of a table, that stand in no record that the same paragraph links to."""
    wrong, line = [], 1
    for paragraph in re.split(r"(\n\s*\n|\n(?=\|)|\n(?=- ))", plain(path)):
        sources = [
            sections(folder / name)[place] if place else text_of(folder / name)
            for name, place in _RECORDS.findall(paragraph)
        ]
        bare = re.sub(r"\]\([^)]*\)|Python 3\.\d+", "]", paragraph)
        for found in FIGURE.finditer(bare):
            number = re.compile(rf"(?<![\d.,]){re.escape(found[1])}(?![\d]|[.,]\d)")
            if not any(number.search(source) for source in sources):
                wrong.append(f"{path.name}:{line + bare.count(chr(10), 0, found.start())}: {found[0]}")
        line += paragraph.count("\n")
    return wrong
