"""Pages as a reader sees them."""

import re
from html.parser import HTMLParser

TITLES = [
    *("Results", "Learning curves", "Roles over time", "Accuracy by class", "Pivot teacher on hard samples"),
    *("Agreement", "Logit correlations", "Calibration", "Features", "Feedback samples", "Training images"),
    *("Speed", "Config"),
]


class Reader(HTMLParser):
    """Checks that tags are balanced, ids unique and anchors theirs, that nothing comes from outside; keeps the text."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.titles, self.cells, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert set(self.links) <= set(self.ids)

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        attributes = dict(attributes)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/png;base64,")), value[:80]
            self.links += [value[1:]] if value.startswith("#") and value != "#" else []
        assert tag not in ("script", "link", "iframe")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.titles.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
        if self.open and self.open[-1] != "style":
            self.text += data


def read(path):
    """The page, checked."""
    text = path.read_text()
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", text)
    return Reader(text)
