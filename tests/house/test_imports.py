"""Who may import whom: downward only, in no circle, and no private module of another room."""

import subprocess
import sys

import pytest
from helpers.house import MODULES, ROOT, imports, module, name_of, ours, sources

# From the ground up: a room may import the rooms before it. A file of a package's top is a room of its own.
ROOMS = (
    *(f"safety_modules.{name}" for name in ("errors", "files", "tables", "taxonomy", "config", "config_reader")),
    *(
        f"safety_modules.{name}"
        for name in ("devices", "build_stamp", "sample", "prompt", "model", "decision", "judges", "eta")
    ),
    *(f"safety_modules.{name}" for name in ("checkpoints", "safe_generator", "pipeline", "evaluation", "reporting")),
    "safety_modules.serving",
    "safety_modules",
    *(f"data_recipes.{name}" for name in ("readers", "core.about", "core.splits", "core.rows", "core.answer_texts")),
    "data_recipes.core.reading",
    "data_recipes",
    *(f"data_recipes.{name}" for name in ("core", "riskworld", "inspection", "__main__")),
    "safety_modules.cli",
    *(f"train.{name}" for name in ("config", "features", "data", "loop", "arguments", "build", "run")),
    *(f"train.{name}" for name in ("planning", "plan", "benchmarks", "experiments")),
    "train",
    "scripts",
)
LIGHT = {"safety_modules.errors", "safety_modules.taxonomy", "safety_modules.sample"}
ETA = ("errors", "config", "config_reader", "devices", "taxonomy", "sample", "prompt", "judges", "decision", "eta")


def room(name):
    """The room of a module: the longest name of ROOMS that it lies in."""
    return max((known for known in ROOMS if f"{name}.".startswith(f"{known}.")), key=len)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_go_down(path):
    own = room(module(path))
    for name in ours(path):
        other = room(name)
        assert ROOMS.index(other) <= ROOMS.index(own), f"{name_of(path)} in {own} imports {name} of {other}"


def test_no_circle():
    arrows = {name: set(ours(path)) - {name} for name, path in MODULES.items()}
    while arrows:
        leaves = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert leaves, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in leaves}


@pytest.mark.parametrize("path", sources("safety_modules", "data_recipes", "train", "scripts", "tests"), ids=name_of)
def test_no_private_name_of_another_module(path):
    for name in imports(path):
        if name.split(".")[0] in ("safety_modules", "data_recipes", "train", "scripts"):
            private = [part for part in name.split(".") if part.startswith("_") and not part.startswith("__")]
            assert not private, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", sources("train"), ids=name_of)
def test_a_training_run_needs_no_side_work(path):
    if module(path) in ("train.run", "train.build", "train.arguments") or room(module(path)) in (
        "train.loop",
        "train.data",
    ):
        assert not [
            name for name in ours(path) if room(name).split(".")[-1] in ("planning", "experiments", "benchmarks")
        ]


@pytest.mark.parametrize("path", sorted((ROOT / "safety_modules" / "eta").rglob("*.py")), ids=name_of)
def test_eta_takes_evaluators_and_callables_not_the_model(path):
    strange = [name for name in ours(path) if name.split(".")[1:2] and name.split(".")[1] not in ETA]
    assert strange == []


@pytest.mark.parametrize("path", sources("data_recipes"), ids=name_of)
def test_recipes_need_no_torch(path):
    assert not {"torch", "transformers"} & {name.split(".")[0] for name in imports(path)}


def test_importing_the_package_is_light():
    code = f"import sys, {', '.join(LIGHT)}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
