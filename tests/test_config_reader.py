"""YAML as people write it, and dataclasses from it: each error says place, value, rule and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import yaml

from safety_modules.config import ConfigError, SafetyConfig
from safety_modules.config_reader import parse, read_yaml, read_yaml_file
from safety_modules.errors import UserError


@dataclass(frozen=True)
class Source:
    recipe: str
    weight: float = 1.0
    labels: dict[str, str | None] = field(default_factory=dict)

    def __post_init__(self):
        if self.weight < 0:
            raise UserError(f"weight {self.weight} must be a number from 0")


@dataclass(frozen=True)
class Data:
    root: str
    train: list[Source]
    max_repeats: int = 10
    packing: bool = False
    fraction: float | None = None


@dataclass(frozen=True)
class Stage:
    data: Data
    version: int | str = 1
    safety: SafetyConfig | None = None
    rules: dict[str, float | None] = field(default_factory=dict)
    trainer: dict = field(default_factory=dict)
    steps: list[list[int]] = field(default_factory=list)


def stage(**data):
    return {"data": {"root": "x", "train": [{"recipe": "custom"}], **data}}


def test_numbers_are_read_as_people_write_them():
    values = read_yaml("{a: 1e-2, b: -2E5, c: 1.5e+3, d: 1e, e: x1e5, f: [3e0]}")
    assert values == {"a": 0.01, "b": -2e5, "c": 1500.0, "d": "1e", "e": "x1e5", "f": [3.0]}
    with pytest.raises(yaml.YAMLError):
        read_yaml("!!python/object/apply:os.getcwd []")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 5e-1")
    assert read_yaml_file(tmp_path / "a.yaml") == {"a": 0.5}
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    for name in ("none.yaml", "bad.yaml", "latin.yaml"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be read as YAML: .+"):
            read_yaml_file(tmp_path / name)


def test_nested_values_get_their_fields_types():
    values = stage(train=[{"recipe": "a", "weight": 2, "labels": {"x": None}}], max_repeats=1e3, fraction=1)
    parsed = parse(
        Stage,
        {
            **values,
            "version": "v2",
            "rules": {"r": 1},
            "safety": {"head_tokens": 4},
            "trainer": {"a": [True], 5: "x"},
            "steps": [[1]],
        },
        "f",
    )
    assert parsed.data == Data("x", [Source("a", 2.0, {"x": None})], 1000, fraction=1.0)
    assert isinstance(parsed.data.train[0].weight, float) and isinstance(parsed.data.max_repeats, int)
    assert isinstance(parsed.rules["r"], float) and parsed.trainer == {"a": [True], 5: "x"} and parsed.steps == [[1]]
    assert (parsed.version, parsed.safety) == ("v2", SafetyConfig(head_tokens=4))


WRONG = {
    "c.yaml: [1] must be a mapping, such as {data: ...}": [1],
    "c.yaml: data: is missing; add it": {},
    "c.yaml: data: 5 must be a mapping, such as {root: 5}": {"data": 5},
    "c.yaml: dta: unknown key; did you mean 'data'? valid names: data, version, safety, rules, trainer, steps": {
        "dta": {}
    },
    "c.yaml: data.trian: unknown key; did you mean 'train'? valid names: root, train, max_repeats, packing, fraction": {
        "data": {"root": "x", "trian": []}
    },
    "c.yaml: data.train: is missing; add it": {"data": {"root": "x"}},
    "c.yaml: data.train: 'custom' must be a list, such as [{recipe: custom}]": stage(train="custom"),
    "c.yaml: data.train.1: 'custom' must be a mapping, such as {recipe: custom}": stage(
        train=[{"recipe": "a"}, "custom"]
    ),
    "c.yaml: data.train.0.weight: 'two' must be a number": stage(train=[{"recipe": "a", "weight": "two"}]),
    "c.yaml: data.train.0.weight: nan must be a number": stage(train=[{"recipe": "a", "weight": float("nan")}]),
    "c.yaml: data.train.0.wieght: unknown key; did you mean 'weight'? valid names: recipe, weight, labels": stage(
        train=[{"recipe": "a", "wieght": 2}]
    ),
    "c.yaml: data.train.0.labels: ['a'] must be a mapping of keys to values": stage(
        train=[{"recipe": "a", "labels": ["a"]}]
    ),
    "c.yaml: data.train.0.labels.x: 3 must be a string; put it in quotes": stage(
        train=[{"recipe": "a", "labels": {"x": 3}}]
    ),
    "c.yaml: data.train.0: weight -1.0 must be a number from 0": stage(train=[{"recipe": "a", "weight": -1}]),
    "c.yaml: data.root: False must be a string; put it in quotes": stage(root=False),
    "c.yaml: data.max_repeats: True must be a whole number": stage(max_repeats=True),
    "c.yaml: data.max_repeats: 1.5 must be a whole number": stage(max_repeats=1.5),
    "c.yaml: data.max_repeats: '5' must be a whole number": stage(max_repeats="5"),
    "c.yaml: data.max_repeats: None must be a whole number": stage(max_repeats=None),
    "c.yaml: data.packing: 'yes' must be true or false": stage(packing="yes"),
    "c.yaml: data.packing: 1 must be true or false": stage(packing=1),
    "c.yaml: data.fraction: True must be a number": stage(fraction=True),
    "c.yaml: steps.0.1: '2' must be a whole number": {**stage(), "steps": [[1, "2"]]},
    "c.yaml: steps.1: 5 must be a list, such as [5]": {**stage(), "steps": [[1], 5]},
    "c.yaml: version: [1] must be a whole number": {**stage(), "version": [1]},
    "c.yaml: rules: 5 must be a string; put it in quotes": {**stage(), "rules": {5: 1.0}},
    "c.yaml: safety.head_tokens: -2 must be a whole number from 0": {**stage(), "safety": {"head_tokens": -2}},
}


@pytest.mark.parametrize("message", WRONG)
def test_an_error_states_place_value_rule_and_remedy(message):
    with pytest.raises(ConfigError) as error:
        parse(Stage, WRONG[message], "c.yaml")
    assert str(error.value) == message


def test_a_part_of_a_file_is_named_by_its_key():
    with pytest.raises(ConfigError, match=r"^c.yaml: data.train.0.recipe: is missing; add it$"):
        parse(Data, {"root": "x", "train": [{}]}, "c.yaml", "data")
