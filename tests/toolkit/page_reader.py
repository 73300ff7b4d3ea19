"""Reading the page as a machine does: its tags, its words, and every `<data>` with what it is of."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "link", "br"}


@dataclass
class Datum:
    """One `<data>`: its attributes, the words shown, and the section that it stands in."""

    value: str
    of: dict[str, str]
    section: str
    text: str = ""


@dataclass
class Page(HTMLParser):
    """What the page holds; `open` are the tags that are open now, for a whole page none at the end."""

    source: str
    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    data: list[Datum] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    section: str = ""

    def __post_init__(self):
        super().__init__(convert_charrefs=True)
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = given["id"]
        if tag == "data":
            of = {name.removeprefix("data-"): value for name, value in given.items() if name.startswith("data-")}
            self.data.append(Datum(given["value"], of, self.section))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if self.open and self.open[-1] == "data":
            self.data[-1].text += data

    def figures(self, section, **of):
        """All data of a section whose attributes are at least these."""
        return [each for each in self.data if each.section == section and of.items() <= each.of.items()]

    @property
    def text(self):
        """All words in the page, style sheet and chart descriptions too."""
        return " ".join(" ".join(self.words).split())
