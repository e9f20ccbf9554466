"""ETA config files: a file -> evaluators and settings, or an error that names the file."""

import json

import pytest
from helpers.tiny_evaluators import eta_folders

from safety_modules.eta import EtaError, EtaSettings
from safety_modules.eta.config_file import HintInstruction, files_of, load_eta
from safety_modules.eta.evaluators.clip import Clip
from safety_modules.eta.evaluators.head import HeadRisk, HeadVerdict
from safety_modules.eta.evaluators.judge import Judge
from safety_modules.eta.evaluators.reward import Reward
from safety_modules.prompt.messages import ask


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bases):
    return eta_folders(tmp_path_factory.mktemp("eta"), bases["llava"])


def test_a_config_file_gives_what_it_names(folders):
    eta = load_eta(folders / "eta.yaml")
    assert isinstance(eta.pre, Clip) and isinstance(eta.post, Reward) and eta.match is eta.pre
    assert (str(eta.pre.model.dtype), str(eta.post.model.dtype)) == ("torch.float32", "torch.bfloat16")
    assert (eta.pre.threshold, eta.post.threshold) == (-1.0, 9) and eta.settings == EtaSettings(
        "I cannot", 2, max_new_tokens=12, sentence_tokens=4, batch_size=2
    )


def test_a_config_file_of_head_and_judge(tmp_path):
    path = tmp_path / "eta.yaml"
    path.write_text(
        "pre: {kind: head, threshold: 0.2}\n"
        "post: {kind: judge, url: 'http://127.0.0.1:9/v1', model: m, threshold: 0.3}\n"
    )
    eta = load_eta(path)
    assert (
        isinstance(eta.pre, HeadRisk)
        and isinstance(eta.post, Judge)
        and (eta.pre.threshold, eta.post.threshold) == (0.2, 0.3)
    )
    path.write_text("post: {kind: head, threshold: 0.4}\n")
    assert isinstance(load_eta(path, assess=lambda rows: []).post, HeadVerdict)
    with pytest.raises(EtaError, match="needs a model with safety modules"):
        load_eta(path)


def test_a_config_file_takes_fitted_thresholds_and_refuses_those_of_another_unit(folders, tmp_path):
    side = {"unit": "cosine", "clean_rows": 9, "clean_flagged": 0.0, "risky_rows": 9, "risky_flagged": 1.0}
    data = {"budget": 0.1, "clean_flagged": 0.0, "risky_flagged": 1.0, "pre": {**side, "threshold": 0.21}}
    (tmp_path / "fitted.json").write_text(json.dumps({**data, "post": {**side, "unit": "reward", "threshold": 1.5}}))
    config = tmp_path / "eta.yaml"
    text = f"pre: {{kind: clip, model: {folders / 'clip'}}}\npost: {{kind: reward, model: {folders / 'reward'}}}\n"
    text += "thresholds: fitted.json\n"
    config.write_text(text)
    eta = load_eta(config)
    assert (eta.pre.threshold, eta.post.threshold) == (0.21, 1.5)
    config.write_text(text.replace(f"kind: clip, model: {folders / 'clip'}", "kind: head"))
    with pytest.raises(EtaError, match="pre is a cosine, the evaluator gives a probability"):
        load_eta(config)


@pytest.mark.parametrize(
    "text,message",
    [
        ("post: {kind: reward, model: r}\nprefix: x\n", "file: unknown key 'prefix'"),
        ("post: {kind: rewards}\n", "post: kind 'rewards'; did you mean 'reward'"),
        ("pre: {kind: head}\n", "post is missing"),
        ("post: {kind: reward, model: reward, treshold: 1}\n", "unknown key 'treshold'; did you mean 'threshold'"),
        ("post: {kind: reward}\n", "post: model is None; give a folder or a hub name"),
        ("post: {kind: judge, model: m}\n", "url is None; give a text"),
        (
            "post: {kind: reward, model: reward, threshold: 9}\nsearch: {temperature: 0}\n",
            "temperature is 0; give a number above 0",
        ),
        (
            "post: {kind: reward, model: reward, threshold: 9}\nmatch: clip\n",
            "match 'clip'; it is clip, with a pre-evaluator",
        ),
        (
            "pre: {kind: clip, model: clip, threshold: 16.0}\npost: {kind: reward, model: reward}\n",
            "16.0, which is not a cosine",
        ),
        ("[]", "file: \\[\\] must be a mapping with pre, post, match"),
        ("post: [", "while parsing"),
    ],
)
def test_a_faulty_config_file_is_an_error_that_names_the_file(folders, text, message):
    path = folders / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(EtaError, match=message) as raised:
        load_eta(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_the_reward_models_instruction_is_the_hint():
    instruction = HintInstruction("otherwise")
    assert instruction(ask("hi")) == "otherwise"
    assert instruction([{"role": "system", "content": "this is private."}, *ask("hi")]) == "this is private."
    assert (
        instruction(
            [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, *ask("hi")]
        )
        == "a b"
    )


def test_the_files_of_a_config_file_are_it_and_what_lies_beside_it(tmp_path):
    (tmp_path / "reward").mkdir()
    (tmp_path / "fitted.json").write_text("1")
    config = tmp_path / "eta.yaml"
    config.write_text("pre: {kind: head}\npost: {kind: reward, model: reward}\nthresholds: fitted.json\n")
    assert files_of(config) == [config, tmp_path / "fitted.json", tmp_path / "reward"]
    config.write_text("post: {kind: reward, model: owner/name}\n")
    assert files_of(config) == [config]
