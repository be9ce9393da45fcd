"""The site builds without a warning (links and anchors included), and reads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from _generate.pages import DOCS, generated, page, sources, stage

ROOT = Path(__file__).parents[2]

# One process builds it for all of these.
pytestmark = pytest.mark.xdist_group("site")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site's folder."""
    return build(tmp_path_factory.mktemp("site"))


def build(folder: Path) -> Path:
    """Build the site from this checkout in another folder, as `make docs` does."""
    shutil.copyfile(ROOT / "mkdocs.yml", folder / "mkdocs.yml")
    stage(folder / "build" / "pages")
    done = zensical(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    return folder / "build" / "site"


def zensical(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{DOCS}{os.pathsep}{ROOT}"}, timeout=120,
    )  # fmt: skip


class Page(HTMLParser):
    """What one page of the site refers to, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.tags: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.ids |= {v for k in ("id", "name") if (v := given.get(k))}
        if tag == "a" and (href := given.get("href")):
            self.links.append(href)
        elif tag == "link" and given.get("rel") not in ("canonical", "next", "prev") and (href := given.get("href")):
            self.loaded.append(href)
        elif src := given.get("src"):
            self.loaded.append(src)


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        if path.name != "404.html":  # its paths are those of a server's root
            yield path, Page(path)


def test_links_anchors_and_files_are_there(site: Path) -> None:
    """The same once more on what a reader has: the builder checks Markdown's links, not what templates and we write."""
    found = dict(pages(site))
    assert len(found) >= 35
    for path, content in found.items():
        for link in [*content.links, *content.loaded]:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            if anchor and target in found:
                assert anchor in found[target].ids, f"{path.relative_to(site)}: {link}"


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, content in pages(site):
        assert [x for x in content.loaded if re.match(r"(https?:)?//", x)] == [], path
    for css in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", css.read_text(encoding="utf-8")), css


def test_every_page_is_in_the_navigation(site: Path) -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=Loader)

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for inner in entry if isinstance(entry, list) else entry.values():
                yield from files(inner)

    named = list(files(config["nav"]))
    made = {str(p.relative_to(DOCS)) for p in sources()} | set(generated()) | {"changelog.md", "contributing.md"}
    assert set(named) == made and len(named) == len(set(named))


def test_equations_are_mathml(site: Path) -> None:
    text = (site / "how-it-works.html").read_text(encoding="utf-8")
    assert text.count("<math ") >= 30 and 'display="block"' in text
    assert "$$" not in re.sub(r'alttext="[^"]*"', "", text)
    assert "\\frac" not in re.sub(r'alttext="[^"]*"|<annotation.*?</annotation>', "", text)


def test_fences_for_tests_are_shown_as_code(site: Path) -> None:
    text = (site / "recipes.html").read_text(encoding="utf-8")
    assert "```" not in text and "language-yaml" in text
    assert page("```console runnable slow\n$ x\n```\n") == "```console\n$ x\n```\n"
    assert page("```yaml recipe.yaml\na: 1\n```\n") == '``` {.yaml title="recipe.yaml"}\na: 1\n```\n'


def test_strict_means_strict(tmp_path: Path) -> None:
    """A link to no page, or to no heading of one, fails the build."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(config[: config.index("nav:")].replace("assets/iframe-worker.js", "none.js"))
    for text in ("[a](nowhere.md)", "[a](other.md#nothing)"):
        folder = tmp_path / "build" / "pages"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.md").write_text(f"# One\n\n{text}\n")
        (folder / "other.md").write_text("# Other\n\n## Something\n")
        assert zensical(tmp_path).returncode != 0, text


def test_staging_again_touches_nothing(tmp_path: Path) -> None:
    stage(tmp_path)
    (tmp_path / "old.md").write_text("# gone from docs/\n")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*") if p.name != "old.md"}
    stage(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.*")} == before
