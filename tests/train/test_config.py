"""A stage's configuration: files, overrides, help, and what is said of a mistake."""

import dataclasses
import json
import re

import pytest
from helpers import stage_runs as runs

from data_recipes.core.data_config import DataConfig, Source
from safety_modules.config import ConfigError, SafetyConfig
from train.config import LoraConfig, TrainConfig, read_config
from train.run import main

FILE = """
output: o
base: b
data: {root: r, train: [{recipe: custom}]}
rules: {'safety.*': 1e-5, 'base.*': null}
lora: {rank: 4}
trainer: {learning_rate: 2e-5, max_steps: 10}
"""


@pytest.fixture
def stage(tmp_path):
    """The stage of FILE, with more of the command line."""
    path = tmp_path / "stage.yaml"
    path.write_text(FILE)
    return lambda *args: read_config(["--config", str(path), *args])


@pytest.mark.parametrize(
    "change,message",
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat: .*did you mean 'learning_rate'"),
        ({"data": {"root": "x", "train": []}}, "data.train is empty"),
        ({"data": {"root": "x", "trian": []}}, "trian.*did you mean 'train'"),
        ({"head_wieght": 1}, "head_wieght.*did you mean 'head_weight'"),
        ({"base": None}, "give one, base to start or modules to continue from"),
        ({"safety": {"head_tokens": -2}}, "head_tokens: -2"),
        ({"data": {"root": "x", "train": [{"recipe": "custom"}], "hint_rate": 2}}, "hint_rate: 2.0 .*0"),
        ({"head_weight": "much"}, "head_weight"),
        ({"trainer": {"eval_strategy": "sometimes", "use_cpu": True}}, "data.validation is empty"),
        ({"trainer": {"save_strategy": "sometimes", "use_cpu": True}}, "trainer: sometimes is not a valid SaveStrat"),
    ],
)
def test_a_wrong_configuration_ends_with_one_line_and_code_2(tmp_path, capsys, change, message):
    good = {
        "output": str(tmp_path / "run"),
        "base": "x",
        "data": {"root": "x", "train": [{"recipe": "custom"}]},
        "rules": {".*": 1e-5},
    }
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({**good, **change}), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path)])
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "args,message",
    [
        (["--trainer.max_step", "3"], r"stage.yaml, --trainer.max_step: trainer.max_step: .*did you mean 'max_steps'"),
        (["--trainer.xyzzy", "3"], "trainer.xyzzy: transformers.TrainingArguments has no such field; .*remove"),
        (["--data.train", "[{recip: custom}]"], r"data.train.0.recip: unknown key; did you mean 'recipe'"),
        (["--lora.ranks", "8"], "lora.ranks: unknown key; did you mean 'rank'"),
        (["--lora.rank", "many"], "lora.rank: 'many' must be"),
        (["--rules", "{a: b}"], "rules.a: 'b' must be"),
        (["--quantize", "nf5"], "quantize: unknown value 'nf5'; did you mean 'nf4'"),
        (["--trainer", "[1]"], "trainer: .*must be a mapping"),
        (["--data.root", "[1"], r"--data.root '\[1': is not YAML"),
        (["--output", "--lora", "null"], "--output: has no value; give --KEY VALUE"),
        (["--output"], "--output: has no value"),
        (["output", "x"], "'output': is not an option; give --config FILE"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_mistake_on_the_command_line_is_named_with_the_remedy(stage, args, message):
    with pytest.raises(ConfigError, match=message):
        stage(*args)


def test_without_a_file_the_missing_file_is_named():
    with pytest.raises(ConfigError, match="no --config FILE was given"):
        read_config([])


def test_overrides_replace_what_the_file_says(stage):
    changed = stage("--lora", "null", "--data.train", "[{recipe: riskworld, limit: 5}]", "--trainer.max_steps=3")
    assert changed.lora is None and changed.data.train == [Source("riskworld", limit=5)]
    assert changed.trainer == {"learning_rate": 2e-5, "max_steps": 3} and changed.data.root == "r"
    assert stage("--data.root=a=b", "--output", "'7'").data.root == "a=b"
    assert stage("--lora.rank", "8").lora == LoraConfig(rank=8)
    assert stage("--safety.head_tokens", "3").safety == SafetyConfig(head_tokens=3)


def test_a_later_file_adds_to_an_earlier_one_and_replaces_its_rules(stage, tmp_path):
    (tmp_path / "more.yaml").write_text("rules: {'.*': 1e-3}\ntrainer: {max_steps: 4}\nlora: null\n")
    both = stage("--config", str(tmp_path / "more.yaml"), "--trainer.seed", "7")
    assert both.rules == {".*": 1e-3} and both.lora is None
    assert both.trainer == {"learning_rate": 2e-5, "max_steps": 4, "seed": 7}
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match=r"list.yaml: must be a mapping of keys to values, not \[1\]"):
        stage("--config", str(tmp_path / "list.yaml"))


def test_numbers_of_yaml_arrive_as_numbers(stage):
    read = stage()
    assert isinstance(read, TrainConfig) and read.lora.rank == 4
    assert read.rules == {"safety.*": 1e-5, "base.*": None} and read.trainer["learning_rate"] == 2e-5


def test_help_lists_every_key_with_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0 and "--config FILE" in text and "--data.root DIR" in text
    for section in (TrainConfig, DataConfig, Source, SafetyConfig, LoraConfig):
        for key in dataclasses.fields(section):
            assert re.search(rf"^  {key.name}: .*(required|default).*\n      \S", text, re.MULTILINE), key.name
    assert re.search(r"^  injection_rate: float, default 0.0$", text, re.MULTILINE)


def test_the_shipped_configurations_are_valid():
    for path in (runs.ROOT / "train" / "configs").glob("*.yaml"):
        start = re.search(r"^(base|modules):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        more = ["--data.root", "x", "--output", "o"] + ([] if start else ["--modules", "m"])
        assert read_config(["--config", str(path), *more]).rules
