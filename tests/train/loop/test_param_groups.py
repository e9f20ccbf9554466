import pytest
from helpers import stage_runs as runs
from torch import nn

from safety_modules.config import ConfigError
from train.config import read_config
from train.loop.param_groups import param_groups


def model():
    return nn.ModuleDict(
        {"safety": nn.Linear(2, 2), "base": nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})}
    )


def test_the_first_match_counts_and_sets_requires_grad():
    net = model()
    groups = param_groups(net, {r"safety\..*": 1e-3, r"base\.a\..*": 1e-5, r"base\..*": None})
    assert [group["lr"] for group in groups] == [1e-3, 1e-5]
    moved = {name for name, parameter in net.named_parameters() if parameter.requires_grad}
    assert moved == {"safety.weight", "safety.bias", "base.a.weight", "base.a.bias"}


@pytest.mark.parametrize(
    "rules,message",
    [
        ({r"safety\..*": 1e-3}, "no pattern matches the parameter 'base.a.weight'"),
        ({r".*": 1e-3, r"safety\..*": None}, r"'safety\\\\..\*' matches no parameter"),
        ({r".*": None}, "everything is frozen"),
        ({r"(": 1e-3}, "is not a regular expression"),
        ({r".*": 3.0}, r"learning rate 3.0; it must be in \(0, 1\)"),
        ({r".*": 0}, "learning rate 0"),
    ],
)
def test_wrong_rules_are_named(rules, message):
    with pytest.raises(ConfigError, match=message):
        param_groups(model(), rules)


def test_rates_are_the_rules_and_weight_decay_the_arguments(bases, tmp_path):
    data = runs.table(tmp_path / "data")
    for decay in (0.0, 0.03):
        path = runs.config(data, tmp_path / "run", runs.LORA, bases["llava"], {"rank": 2}, weight_decay=decay)
        trainer = runs.trainer_of(read_config(["--config", str(path)]))
        groups = trainer.create_optimizer().param_groups
        assert [group["weight_decay"] for group in groups] == [decay, decay]
        assert [group["lr"] for group in groups] == [1e-2, 3e-2]
