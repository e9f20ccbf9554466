"""Who may import whom, and which packages: parsed, not run."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ("safety_modules", "data_recipes", "train", "scripts")  # each may import those before it
LEAVES = {  # module of the library -> what it may take of ours; errors is everybody's
    "errors": set(),
    "taxonomy": set(),
    "config": {"taxonomy"},  # for the nearest name in an error
    "quantization": {"config", "taxonomy"},
    "backbones": set(),
    "images": set(),
    "tokens": set(),
    "projector": {"config"},
    "head": {"config"},
    "modules": {"config", "head", "projector", "taxonomy", "tokens"},
    "markers": set(),
    "padding": set(),
    "losses": set(),
    "assessment": {"taxonomy"},
    "rule": {"taxonomy", "assessment", "calibration"},
    "policy": {"taxonomy", "assessment", "calibration", "rule", "yaml_text"},
    "yaml_text": set(),
    "calibration": {"taxonomy", "assessment"},
}
ETA = {
    "errors",
    "images",
    "messages",
    "markers",
    "taxonomy",
    "yaml_text",
    "calibration",
    "evaluation.judges",
}  # beside itself
EXTRAS = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "deepspeed",
    "jsonargparse",
    "peft",
    "wandb",
    "fastapi",
    "uvicorn",
    "openai",
}
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]


def imports(path, top_level_only=False):
    """Dotted names that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_arrows_of_the_house(path):
    layer = path.relative_to(ROOT).parts[0]
    for name in imports(path):
        package = name.split(".")[0]
        if package in LAYERS:
            assert LAYERS.index(package) <= LAYERS.index(layer), f"{path} imports {name}"
        if layer == "data_recipes":
            assert package not in ("torch", "transformers"), f"{path} imports {name}"
            if package == "safety_modules":
                assert name.split(".")[1] in ("taxonomy", "errors", "images"), f"{path} imports {name}"


@pytest.mark.parametrize("module", LEAVES)
def test_leaves_of_the_library(module):
    ours = {
        name.split(".")[1]
        for name in imports(ROOT / "safety_modules" / f"{module}.py")
        if name.startswith("safety_modules.")
    }
    assert ours - {"errors"} <= LEAVES[module]


@pytest.mark.parametrize("path", sorted((ROOT / "safety_modules" / "eta").glob("*.py")), ids=lambda path: path.name)
def test_eta_takes_evaluators_and_callables_not_the_model(path):
    ours = [name.removeprefix("safety_modules.") for name in imports(path) if name.split(".")[0] == "safety_modules"]
    strange = [name for name in ours if not any(name == leaf or name.startswith(f"{leaf}.") for leaf in (*ETA, "eta"))]
    assert strange == []


def test_the_library_needs_no_extra_at_import():
    for path in (ROOT / "safety_modules").rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path, top_level_only=True)} & EXTRAS, path


def test_importing_the_package_is_light():
    code = "import sys, safety_modules.taxonomy, data_recipes.sample; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_over_300_lines():
    files = [*FILES, *(ROOT / "tests").glob("*.py")]
    long = [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 300]
    assert long == []


def public(module):
    """Public classes, functions and methods that a module defines."""
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item):
            yield name, item
            for method, body in vars(item).items():
                if not method.startswith("_") and inspect.isfunction(body):
                    yield f"{name}.{method}", body


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parts[-2] != "scripts"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_contract_10_everything_public_has_a_docstring(path):
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert module.__doc__, path
    missing = [name for name, item in public(module) if not item.__doc__]
    assert missing == []
