"""Links, pictures and names of files in the pages lead somewhere."""

import re

import doc_pages
import pytest
from doc_pages import ROOT

# With those that stand beside README.md.
PAGES = sorted({*doc_pages.PAGES, *ROOT.glob("*.md")})
LINK = re.compile(r"\]\(([^)\s]+)\)")
# In code: `configs/imagenet.py:ARG`, `bash launch/test.sh`.
FILE = re.compile(
    r"(?<![\w/.])(?:configs|docs|launch|tests|vt_flax)/[\w/]+\.(?:py|sh|md|png)\b"
)


def anchors(page):
    """Returns what GitHub makes of a page's headings."""
    heads = re.findall(r"^#+ (.+)$", doc_pages.prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_resolve(page):
    for link in LINK.findall(doc_pages.prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", doc_pages.PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page):
    bash = [b.text for b in doc_pages.blocks(page) if b.language == "bash"]
    named = FILE.findall("\n".join([doc_pages.prose(page), *bash]))
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_page_is_linked_from_the_readme():
    readme, *pages = doc_pages.PAGES
    links = LINK.findall(readme.read_text())
    links = {(ROOT / link.partition("#")[0]).resolve() for link in links}
    # The front page of the site, and its API reference.
    site = {ROOT / "docs" / "index.md", ROOT / "docs" / "api.md"}
    assert {*pages} - site <= links
