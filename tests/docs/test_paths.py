"""Pages: every file, folder and link that a page names is there, and every command is one."""

import re

import pytest
from helpers.house import ROOT, name_of, tracked

PAGES = [path for path in tracked() if path.suffix == ".md"]
TOPS = ("safety_modules", "data_recipes", "train", "scripts", "tests", "docs")
COMMANDS = {path.stem for path in (ROOT / "safety_modules" / "cli").glob("*.py")}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_and_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(TOPS)})/[\w/.-]*)`", text)
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    missing = [path for path in named if not (ROOT / path).exists()]
    missing += [link for link in links if link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page):
    text = page.read_text(encoding="utf-8")
    modules = set(re.findall(r"-m ((?:train|scripts|data_recipes|safety_modules)[\w.]*)", text))
    missing = [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    missing = [name for name in missing if not (ROOT / name.replace(".", "/") / "__main__.py").is_file()]
    commands = set(re.findall(r"safety-modules ([a-z]+)", text)) - {"is"}
    assert missing == [] and commands <= COMMANDS | {"serve"}, (missing, commands - COMMANDS)
