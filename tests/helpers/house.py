"""The house as its source shows it: files, imports, definitions, words. Parsed, not run."""

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("safety_modules", "data_recipes", "train", "scripts")


@cache
def sources(*folders):
    """The Python files of these top-level folders."""
    return tuple(sorted(path for folder in folders or PACKAGES for path in (ROOT / folder).rglob("*.py")))


@cache
def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def module(path):
    """Dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for path in sources()}


def imports(path, top_level_only=False):
    """Dotted names that a file imports, also within functions: modules of ours, or module and name."""
    for node in tree(path).body if top_level_only else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    """Modules of this house that a file imports."""
    for name in imports(path):
        found = name if name in MODULES else name.rpartition(".")[0]
        if found in MODULES:
            yield found


def name_of(path):
    return str(path.relative_to(ROOT))


def tracked():
    """Every file that belongs to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
