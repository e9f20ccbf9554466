"""The ETA configuration file: YAML -> an `Eta` with its evaluators and settings."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from safety_modules.config_reader import read_yaml_file
from safety_modules.errors import check_keys, nearest
from safety_modules.eta.eta import Eta
from safety_modules.eta.eta_thresholds import EtaThresholds
from safety_modules.eta.evaluators.clip import Clip
from safety_modules.eta.evaluators.head import Assess, HeadRisk, HeadVerdict
from safety_modules.eta.evaluators.judge import Judge
from safety_modules.eta.evaluators.protocols import EtaError, Matcher, Messages, PostEvaluator, PreEvaluator
from safety_modules.eta.evaluators.reward import INSTRUCTION, Reward
from safety_modules.eta.settings import EtaSettings

KEYS = ("pre", "post", "match", "search", "thresholds")
PRE: dict[str, tuple[str, ...]] = {"clip": ("model", "dtype", "threshold", "text"), "head": ("threshold",)}
POST = {
    "reward": ("model", "dtype", "threshold", "instruction", "with_question", "label", "with_hint"),
    "judge": ("url", "model", "key_variable", "threshold", "timeout_s", "retries", "rubric", "images", "structured"),
    "head": ("threshold",),
}
DEFAULT_HEAD_THRESHOLD = 0.5
UNITS = {"reward": Reward.unit, "judge": Judge.unit, "head": HeadVerdict.unit}
SEARCH = tuple(field.name for field in fields(EtaSettings) if field.name != "ends_sentence")


def load_eta(path: str | Path, assess: Assess | None = None, device: str = "cpu") -> Eta:
    """Build ETA from its configuration file; docs/eta.md lists the keys.

    Args:
        path: the file. A model is a folder or a hub name; a relative folder is looked for beside the file first.
        assess: such as `SafePipeline.assess`, for evaluators of kind "head".
        device: of the evaluators' models.

    Raises:
        EtaError: the file cannot be read, or has an unknown key or a value that cannot be used; the message names it.
    """
    path, data = Path(path), read_yaml_file(path, EtaError)
    try:
        check_keys(data, KEYS, "file", EtaError)
        search = check_keys(data.get("search") or {}, SEARCH, "search", EtaError)
        pre, post = _kind("pre", data.get("pre"), PRE), _kind("post", data.get("post"), POST)
        if post is None:
            raise EtaError(f"post is missing; it is one of {', '.join(POST)}")
        if data.get("thresholds"):
            if pre is None:
                raise EtaError("thresholds are of two evaluators, and pre is missing; add it, or give post a threshold")
            if not isinstance(data["thresholds"], str):
                raise EtaError(f"thresholds is {data['thresholds']!r}; give the name of a file")
            units = Clip.unit if pre[0] == "clip" else HeadRisk.unit, UNITS[post[0]]
            thresholds = EtaThresholds.load(path.parent / data["thresholds"], *units)
            pre[1]["threshold"], post[1]["threshold"] = thresholds.pre.threshold, thresholds.post.threshold
        first = _pre(pre, path.parent, assess, device)
        second = _post(post, path.parent, assess, device)
        return Eta(second, first, _match(data.get("match"), first), EtaSettings(**search))
    except (OSError, UnicodeDecodeError, EtaError) as error:
        raise EtaError(f"{path}: {' '.join(str(error).split())}") from error


def files_of(path: str | Path) -> list[Path]:
    """The file, and the files and folders beside it that it names: what ETA's answers depend on."""
    path = Path(path)
    data = read_yaml_file(path, EtaError)
    names = [data.get("thresholds"), *(data[part].get("model") for part in ("pre", "post") if data.get(part))]
    return [path, *(path.parent / name for name in names if name and (path.parent / name).exists())]


Part = tuple[str, dict[str, Any]]  # kind and its own values


def _kind(name: str, data: object, kinds: dict[str, tuple[str, ...]]) -> Part | None:
    """One evaluator's kind and values."""
    if data is None:
        return None
    if not isinstance(data, dict) or data.get("kind") not in kinds:
        kind = data.get("kind") if isinstance(data, dict) else data
        raise EtaError(f"{name}: kind {kind!r}; {nearest(kind, kinds)}")
    values = {key: value for key, value in data.items() if key != "kind"}
    return data["kind"], check_keys(values, kinds[data["kind"]], f"{name} of kind {data['kind']}", EtaError)


def _pre(part: Part | None, folder: Path, assess: Assess | None, device: str) -> PreEvaluator | None:
    """The pre-evaluator."""
    if part is None:
        return None
    kind, values = part
    if kind == "head":
        return HeadRisk(values.get("threshold", DEFAULT_HEAD_THRESHOLD), assess)
    return Clip.from_pretrained(_model("pre", values, folder), device, **_pick(values, "dtype", "text", "threshold"))


def _post(part: Part, folder: Path, assess: Assess | None, device: str) -> PostEvaluator:
    """The post-evaluator."""
    kind, values = part
    if kind == "head":
        if assess is None:
            raise EtaError("post of kind head needs a model with safety modules; use a reward or a judge with this one")
        return HeadVerdict(values.get("threshold", DEFAULT_HEAD_THRESHOLD), assess)
    if kind == "judge":
        for key in ("url", "model"):
            if not isinstance(values.get(key), str):
                raise EtaError(f"post of kind judge: {key} is {values.get(key)!r}; give a text")
        options = _pick(values, *POST["judge"][2:])
        return Judge(values["url"], values["model"], **{"key_variable": None, **options})
    options = _pick(values, "dtype", "threshold", "with_question", "label")
    instruction = values.get("instruction", INSTRUCTION)
    options["instruction"] = HintInstruction(instruction) if values.get("with_hint") else instruction
    return Reward.from_pretrained(_model("post", values, folder), device, **options)


class HintInstruction:
    """Instruction of a reward model: the hint of an exchange's system message, where it has one."""

    def __init__(self, otherwise: str) -> None:
        """Args: otherwise: for an exchange without one."""
        self.otherwise = otherwise

    def __call__(self, exchange: Messages) -> str:
        """The instruction for an exchange."""
        first = exchange[0]
        if first["role"] != "system":
            return self.otherwise
        content = first["content"]
        return content if isinstance(content, str) else " ".join(part["text"] for part in content)


def _match(name: object, pre: PreEvaluator | None) -> Matcher | None:
    """What scores sentences against the image: the CLIP model that is the pre-evaluator, or nothing."""
    if name is None:
        return None
    if name != "clip" or not isinstance(pre, Clip):
        raise EtaError(f"match {name!r}; it is clip, with a pre-evaluator of kind clip, or left out")
    return pre


def _model(where: str, values: dict, folder: Path) -> str | Path:
    """A folder beside the file, or else the name as it is."""
    name = values.get("model")
    if not isinstance(name, str) or not name:
        raise EtaError(f"{where}: model is {name!r}; give a folder or a hub name")
    return folder / name if (folder / name).is_dir() else name


def _pick(values: dict, *names: str) -> dict:
    return {name: values[name] for name in names if name in values}
