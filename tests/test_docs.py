"""The pages follow from the code, are reachable, and link to what there is."""

from __future__ import annotations

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "ROADMAP.md", *sorted(DOCS.rglob("*.md"))]


def make() -> Any:
    spec = spec_from_file_location("make", DOCS / "reference" / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def links(page: Path) -> list[Path]:
    """Files and folders of the checkout that a page links to."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    return [(page.parent / target).resolve() for target in targets if target and "://" not in target]


@pytest.mark.parametrize("name", ["reference/job-file.md", "reference/campaign-file.md", "reference/tables.md", "README.md"])
def test_generated_pages_are_up_to_date(name: str) -> None:
    module = make()
    assert (DOCS / name).read_text(encoding="utf-8") == module.PAGES[name](), f"run: {module.COMMAND}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [str(target) for target in links(page) if not target.exists()] == []


def test_every_page_is_linked() -> None:
    linked = {target for page in PAGES for target in links(page)}
    assert [str(page.relative_to(ROOT)) for page in DOCS.rglob("*.md") if page.resolve() not in linked] == []
    assert {path.name for path in DOCS.iterdir() if path.is_dir()} >= {"tutorial", "howto", "reference", "explanation"}
