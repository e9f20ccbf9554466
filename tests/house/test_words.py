"""Words of the field: names, docstrings, comments and messages have none of the words that are never right here.

Texts that a model reads are data and are not checked: their wording is what was trained on.
"""

import ast
import io
import re
import tokenize
from collections import defaultdict

import pytest
from helpers.house import name_of, sources, tree

WORDS = {  # a pattern of whole words -> what to write
    "pictures?": "image",
    "speakers?": "generator",
    "(?<!of )courses?": "batch run",
    "told": "given, shown, written",
    "dearer": "costs more",
    "survival": "resume",
    "blueprints?": "meta model",
    "footprints?": "activations, memory",
    "forecasts?": "estimate",
    r"letter\s+for\s+letter": "token for token, character for character",
    r"(?P<there>there\s+)?(?:is|are)\s+no\s+(?!longer|more|less|worse|better|one\b)\S+": "is not a, there is no",
    r"no\s+one's": "not shared",
    "amid": "during",
    "anew": "again",
    "obey(?:s|ed|ing)?": "comply with a harmful request",
}
PATTERN = re.compile("|".join(rf"\b(?P<w{place}>{word})" for place, word in enumerate(WORDS)), re.IGNORECASE)
REMEDIES = list(WORDS.values())
TRAINING_TEXTS = (  # files whose strings, but not their docstrings and comments, a model reads
    "data_recipes/riskworld/",
    "train/data/injections.py",
    "train/experiments/riskworld_models/",
)
ALLOWED = {  # (file, word) -> why it is right there
    ("safety_modules/checkpoints/merge_report.py", "picture"): "a question that a model is asked",
    ("safety_modules/prompt/messages.py", "picture"): "a question that a model is asked",
    ("train/benchmarks/data_loading.py", "picture"): "texts of rows that are measured",
}
REFUSING = {"refuse_unsafe": "a rule of an experiment that answers by refusing"}  # function -> why the name is right


def text_of(node):
    """A string, or an f-string with {} for its values; None for all else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return None


def docstrings(path):
    """The nodes of a file's docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree(path)):
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr):
            yield node.body[0].value


def identifiers(node):
    """Names that a node defines or uses."""
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, (ast.arg, ast.keyword)):
        yield node.arg or ""
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.alias):
        yield node.asname or node.name


def words_of(identifier):
    """snake_case and CamelCase taken apart: `SafeSpeaker` -> safe speaker."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_.]+", " ", identifier).lower()


def passages(path):
    """(line, text) of everything in a file that is read by people, each once."""
    data = str(name_of(path)).startswith(TRAINING_TEXTS)
    documentation = {id(node) for node in docstrings(path)}
    pieces = {id(part) for node in ast.walk(tree(path)) if isinstance(node, ast.JoinedStr) for part in node.values}
    yield 1, words_of(path.stem)
    for node in ast.walk(tree(path)):
        text = text_of(node)
        if text is not None and id(node) not in pieces and (not data or id(node) in documentation):
            yield node.lineno, text
        yield from ((getattr(node, "lineno", 1), words_of(name)) for name in identifiers(node))
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def hits(path):
    """(line, word, what to write) of each word that is not right."""
    for line, text in passages(path):
        for match in PATTERN.finditer(text):
            if not match["there"]:
                place = int(match.lastgroup[1:])
                yield line + text[: match.start()].count("\n"), " ".join(match[0].lower().split()), REMEDIES[place]


def found():
    return [(name_of(path), *hit) for path in sources() for hit in hits(path)]


def test_no_word_that_is_never_right():
    wrong = sorted({hit for hit in found() if (hit[0], hit[2]) not in ALLOWED})
    if wrong:
        pytest.fail("\n" + "\n".join(f"{file}:{line}: {word!r}: {remedy}" for file, line, word, remedy in wrong))


def test_each_exception_is_needed():
    assert set(ALLOWED) <= {(file, word) for file, _, word, _ in found()}


def test_only_models_refuse():
    """Configuration is checked: no function is named refuse_*, and no docstring of one begins with Refuse."""
    wrong = defaultdict(list)
    for path in sources():
        for node in ast.walk(tree(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in REFUSING:
                if re.match(r"_?refuse_", node.name) or (ast.get_docstring(node) or "").startswith("Refuse"):
                    wrong[name_of(path)].append(f"{node.lineno} {node.name}")
    assert dict(wrong) == {}


@pytest.mark.parametrize(
    "source,word",
    [
        ('"""One picture."""', "picture"),
        ("class SafeSpeaker: pass", "speaker"),
        ("def told(): pass", "told"),
        ("x = f'{x} is no {y}'", "is no {}"),
        ("x = 'this is no number'", "is no number"),
        ("x = 1  # made anew", "anew"),
        ('"""There is no image; it is\n    no number."""', "no number"),
    ],
)
def test_a_word_is_found_wherever_it_stands(tmp_path, monkeypatch, source, word):
    monkeypatch.setattr("helpers.house.ROOT", tmp_path)
    path = tmp_path / "a.py"
    path.write_text(source)
    ((_, hit, _),) = hits(path)
    assert word in hit
