"""Parameter groups: an ordered table, parameter pattern -> learning rate, that must match every parameter."""

from __future__ import annotations

import re

from torch import nn

from safety_modules.config import ConfigError


def param_groups(model: nn.Module, rules: dict[str, float | None]) -> list[dict]:
    """Freeze and group a model's parameters as the rules say.

    Each parameter follows the first rule whose pattern matches its whole name. `requires_grad` is set from it.

    Args:
        rules: regular expression -> learning rate, or None to freeze.

    Returns:
        Optimizer groups `{"params": [...], "lr": rate}`, one for each rule that trains.

    Raises:
        ConfigError: a parameter that no rule matches, a rule that matches nothing or trains a quantised weight, a bad
            pattern or rate, or nothing to train.
    """
    parameters: dict[str, list[nn.Parameter]] = {pattern: [] for pattern in rules}
    compiled = {pattern: _compile(pattern, rate) for pattern, rate in rules.items()}
    for name, parameter in model.named_parameters():
        pattern = next((p for p, regex in compiled.items() if regex.fullmatch(name)), None)
        if pattern is None:
            raise ConfigError(f"rules: no pattern matches the parameter {name!r}; add one, with null to freeze it")
        if rules[pattern] is not None and not parameter.is_floating_point():
            raise ConfigError(
                f"rules: {pattern!r} trains {name!r}, which is quantised; freeze it with null in a rule above, "
                "or remove quantize"
            )
        parameter.requires_grad_(rules[pattern] is not None)
        parameters[pattern].append(parameter)
    for pattern, matched in parameters.items():
        if not matched:
            raise ConfigError(
                f"rules: {pattern!r} matches no parameter that no rule above it matches; remove it, or move it up"
            )
    groups = [{"params": parameters[pattern], "lr": rate} for pattern, rate in rules.items() if rate is not None]
    if not groups:
        raise ConfigError("rules: everything is frozen; give at least one pattern a learning rate")
    return groups


def _compile(pattern: str, rate: float | None) -> re.Pattern[str]:
    if rate is not None and not 0 < rate < 1:
        raise ConfigError(f"rules: {pattern!r} has the learning rate {rate!r}; it must be in (0, 1), or null to freeze")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"rules: {pattern!r} is not a regular expression ({error})") from error
