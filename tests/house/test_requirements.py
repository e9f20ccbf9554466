"""The wheel's declared requirements are what its code imports; an extra's are imported where they are used alone."""

import ast
import re
import runpy
import sys
from functools import cache
from importlib.metadata import packages_distributions

import pytest
from helpers.house import ROOT, imports, name_of, sources, tree

INSTALLED = ("safety_modules", "data_recipes")


def distribution(text):
    """Its normal name: "PyYAML>=6; sys_platform == 'linux'" -> pyyaml."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", text)[0]).lower()


@cache
def known():
    """Import name -> distributions, of what is installed here."""
    return packages_distributions()


@pytest.fixture
def declared(monkeypatch):
    """What setup.py passes to `setup`: required distributions, and extra -> its own."""
    arguments = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: arguments.update(options))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    extras = {name: set(map(distribution, texts)) for name, texts in arguments["extras_require"].items()}
    return set(map(distribution, arguments["install_requires"])), extras


def outside_functions(path):
    """Top-level packages that importing a file imports."""
    nodes = list(tree(path).body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            nodes += ast.iter_child_nodes(node)


def third_party(names):
    """Distributions of imported names, without the standard library and this project."""
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - set(INSTALLED)
    return {distribution(known().get(package, [package])[0]) for package in packages}


def test_every_import_is_declared_and_every_requirement_imported(declared):
    required, extras = declared
    imported = third_party(name for path in sources(*INSTALLED) for name in imports(path))
    optional = set().union(*(names for name, names in extras.items() if name != "dev")) - required
    assert imported - required - optional == set(), "imported, but not declared"
    assert required - imported == set(), "declared, but not imported"


@pytest.mark.parametrize("path", sources(*INSTALLED), ids=name_of)
def test_what_an_extra_installs_is_imported_within_functions(declared, path):
    assert third_party(outside_functions(path)) <= declared[0]
