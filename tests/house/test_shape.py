"""How large a file, a folder and a function may be; names that stand once; docstrings."""

import ast
import inspect
from collections import Counter, defaultdict
from importlib import import_module

import pytest
from helpers.house import ROOT, module, name_of, sources, tree

LINES, FILES, FUNCTION, BRANCHES = 300, 12, 60, 15
EVERYTHING = sources("safety_modules", "data_recipes", "train", "scripts", "tests")
BRANCH = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.comprehension, ast.match_case)


def test_no_file_is_long():
    long = {name_of(path): count for path in EVERYTHING if (count := path.read_text().count("\n")) > LINES}
    assert long == {}


def test_no_folder_is_crowded():
    counts = Counter(path.parent for path in EVERYTHING)
    counts[ROOT / "data_recipes"] = 0  # a file for each data set
    assert {name_of(folder): count for folder, count in counts.items() if count > FILES} == {}


def branches(function):
    """Places where a function's way forks; `and` and `or` count, functions within it do not."""
    count, rest = 0, list(ast.iter_child_nodes(function))
    while rest:
        node = rest.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        count += isinstance(node, BRANCH)
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        rest += ast.iter_child_nodes(node)
    return count


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_no_function_is_long_or_branchy(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION, f"{name_of(path)}: {node.name} has {lines} lines"
            assert branches(node) <= BRANCHES, f"{name_of(path)}: {node.name} has {branches(node)} branches"


def test_no_public_class_name_stands_twice():
    places = defaultdict(list)
    for path in sources():
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name_of(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def public(where):
    """Public classes, functions and methods that a module defines."""
    for name, item in vars(where).items():
        if name.startswith("_") or getattr(item, "__module__", None) != where.__name__:
            continue
        if inspect.isfunction(item) or inspect.isclass(item):
            yield name, item
        if inspect.isclass(item):
            for method, body in vars(item).items():
                if not method.startswith("_") and inspect.isfunction(body):
                    yield f"{name}.{method}", body


@pytest.mark.parametrize("path", sources("safety_modules", "data_recipes", "train"), ids=name_of)
def test_contract_10_everything_public_has_a_docstring(path):
    where = import_module(module(path))
    assert where.__doc__, path
    assert [name for name, item in public(where) if not item.__doc__] == []
