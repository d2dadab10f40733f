"""HTML pages as trees of elements, so that tests read what a page says and not how it is written."""

from dataclasses import dataclass, field
from html.parser import HTMLParser


@dataclass
class Element:
    """A tag with what is inside it."""

    tag: str
    attributes: dict[str, str | None]
    parent: "Element | None" = None
    children: list["Element"] = field(default_factory=list)
    own: str = ""

    def all(self, tag: str, kind: str = "") -> list["Element"]:
        """List the elements of a tag, and of a class if one is given, in the order of the page."""
        kinds = ["", *(self.attributes.get("class") or "").split()]
        here = [self] if self.tag == tag and kind in kinds else []
        return here + [inner for child in self.children for inner in child.all(tag, kind)]

    @property
    def text(self) -> str:
        """The text of the element and of all that is inside it."""
        return " ".join([self.own, *(child.text for child in self.children)]).strip()


class Tree(HTMLParser):
    """A page as elements; it checks on the way that every tag is closed in its turn."""

    VOID = ("meta", "img", "br", "hr", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = self.at = Element("root", {})
        self.feed(html)
        self.close()
        assert self.at is self.root, f"<{self.at.tag}> is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self.at)
        self.at.children.append(element)
        if tag not in self.VOID:
            self.at = element

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert tag == self.at.tag, f"</{tag}> ends <{self.at.tag}>"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.own += data


def words(text: str) -> str:
    """Put a text on one line, with one space between words."""
    return " ".join(text.split())


def tags(html: str) -> list[tuple[str, tuple[str, ...]]]:
    """List the tags of a page with the names of their attributes."""

    def walk(element: Element) -> list[tuple[str, tuple[str, ...]]]:
        here = (element.tag, tuple(element.attributes))
        return [here, *(inner for child in element.children for inner in walk(child))]

    return walk(Tree(html).root)
