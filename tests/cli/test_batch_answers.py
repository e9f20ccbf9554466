"""ETA in a pipeline and on the command line: recipes, a file of rows, a run that was killed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import tiny, tiny_evaluators

from safety_modules.checkpoints.save import save_safety
from safety_modules.cli import batch_answers, generate
from safety_modules.decision.policy import Policy
from safety_modules.errors import UserError
from safety_modules.eta import Eta, EtaError, EtaSettings
from safety_modules.eta.config_file import HintInstruction, load_eta
from safety_modules.eta.evaluators.clip import Clip
from safety_modules.eta.evaluators.head import HeadRisk, HeadVerdict
from safety_modules.eta.evaluators.judge import Judge
from safety_modules.eta.evaluators.reward import Reward
from safety_modules.model.safe_vlm import SafeVLM
from safety_modules.pipeline import SafePipeline, ask

ROOT = Path(__file__).parents[2]
SEARCH = "search: {prefix: I cannot, candidates: 2, max_new_tokens: 12, sentence_tokens: 4, batch_size: 2}\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, bases):
    """A model with modules, a CLIP and a reward model, with a recipe beside them."""
    home = tmp_path_factory.mktemp("eta")
    model = SafeVLM.attach(bases["llava"], tiny.safety_config())
    save_safety(model, home / "safe", str(bases["llava"]))
    tiny_evaluators.clip_folder(home / "clip"), tiny_evaluators.reward_folder(home / "reward")
    (home / "eta.yaml").write_text(
        "pre: {kind: clip, model: clip, threshold: -1.0}\nmatch: clip\n"
        "post: {kind: reward, model: reward, dtype: bfloat16, threshold: 9}\n" + SEARCH
    )
    return home


def rows(folder, count=5):
    tiny.image(0).save(folder / "a.png")
    lines = [{"id": f"row {i}", "question": f"what is it? {i}", "image": "a.png"} for i in range(count)]
    lines[1] = {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "why\u2028?"}]}
        ]
    }
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    return folder / "rows.jsonl"


def read(path):
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def test_a_recipe_is_what_it_says(folders):
    eta = load_eta(folders / "eta.yaml")
    assert isinstance(eta.pre, Clip) and isinstance(eta.post, Reward) and eta.match is eta.pre
    assert (str(eta.pre.model.dtype), str(eta.post.model.dtype)) == ("torch.float32", "torch.bfloat16")
    assert (eta.pre.threshold, eta.post.threshold) == (-1.0, 9) and eta.settings == EtaSettings(
        "I cannot", 2, max_new_tokens=12, sentence_tokens=4, batch_size=2
    )


def test_a_recipe_of_head_and_judge(tmp_path, monkeypatch):
    path = tmp_path / "eta.yaml"
    path.write_text(
        "pre: {kind: head, threshold: 0.2}\npost: {kind: judge, url: 'http://127.0.0.1:9/v1', model: m, threshold: 0.3}\n"
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


def test_a_recipe_takes_fitted_thresholds_and_refuses_those_of_another_unit(folders, tmp_path):
    side = {"unit": "cosine", "clean_rows": 9, "clean_flagged": 0.0, "risky_rows": 9, "risky_flagged": 1.0}
    data = {"budget": 0.1, "clean_flagged": 0.0, "risky_flagged": 1.0, "pre": {**side, "threshold": 0.21}}
    (tmp_path / "fitted.json").write_text(json.dumps({**data, "post": {**side, "unit": "reward", "threshold": 1.5}}))
    recipe = tmp_path / "eta.yaml"
    parts = f"pre: {{kind: clip, model: {folders / 'clip'}}}\npost: {{kind: reward, model: {folders / 'reward'}}}\n"
    parts += "thresholds: fitted.json\n"
    recipe.write_text(parts)
    eta = load_eta(recipe)
    assert (eta.pre.threshold, eta.post.threshold) == (0.21, 1.5)
    recipe.write_text(parts.replace(f"kind: clip, model: {folders / 'clip'}", "kind: head"))
    with pytest.raises(EtaError, match="pre is a cosine, the evaluator gives a probability"):
        load_eta(recipe)


@pytest.mark.parametrize(
    "text,message",
    [
        ("post: {kind: reward, model: r}\nprefix: x\n", "recipe: unknown key 'prefix'"),
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
            "16.0, which is no cosine",
        ),
        ("[]", "recipe is \\[\\]; it must be keys and values"),
        ("post: [", "while parsing"),
    ],
)
def test_a_faulty_recipe_is_an_error_that_names_the_file(folders, text, message):
    path = folders / "faulty.yaml"
    path.write_text(text)
    with pytest.raises(EtaError, match=message) as raised:
        load_eta(path)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_the_reward_model_is_told_the_hint():
    told = HintInstruction("otherwise")
    assert told(ask("hi")) == "otherwise"
    assert told([{"role": "system", "content": "this is private."}, *ask("hi")]) == "this is private."
    assert (
        told(
            [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, *ask("hi")]
        )
        == "a b"
    )


class Post:
    """Finds unsafe what does not begin with the prefix; keeps what it was told."""

    def __init__(self):
        from safety_modules.eta import REWARD

        self.unit, self.threshold, self.read = REWARD, 0.0, []

    def __call__(self, exchanges, texts):
        self.read += exchanges
        return [1.0 if text.startswith("I cannot") else -1.0 for text in texts]


def test_in_a_pipeline_the_head_decides_what_is_evaluated(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    asked = [ask(f"what is it? {i}", [tiny.image(i)]) for i in range(4)]
    risks = [assessment.risk for assessment in pipeline.assess(asked)]
    plain, middle = pipeline(asked, 12), sorted(risks)[2]
    settings = EtaSettings("I cannot", 2, max_new_tokens=99, sentence_tokens=4)
    pipeline.eta = Eta(Post(), HeadRisk(middle), settings=settings)
    found = pipeline(asked, 12)
    for risk, before, now in zip(risks, plain, found):
        assert now.eta.pre == risk and now.action == before.action
        assert now.eta.stage == ("aligned" if risk >= middle else "plain")
        assert now.answer.startswith("I cannot") if risk >= middle else now.answer == before.answer
        assert now.to_dict()["eta"]["stage"] == now.eta.stage and "answer" not in now.to_dict()["eta"]


def test_in_a_pipeline_the_hint_is_told_and_the_policys_refusal_is_given(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy = pipeline.model.taxonomy
    pipeline.policy = Policy.from_dict({"default": {"threshold": 0.0}, "refusal": "No: {hint}."}, taxonomy)
    post = Post()
    pipeline.eta = Eta(post, settings=EtaSettings("Well", 2, max_new_tokens=99, sentence_tokens=4))
    (found,) = pipeline([ask("what is it?", [tiny.image(0)])], 12)
    assert found.action == "hint" and found.eta.stage == "refused"
    assert found.answer == pipeline.policy.refuse(found.decision) and found.answer.startswith("No: ")
    assert all(read[0] == {"role": "system", "content": found.decision.hint} for read in post.read)


def test_what_the_policy_refuses_or_leaves_to_the_base_is_not_searched(folders):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy = pipeline.model.taxonomy
    for rule in (
        {"threshold": 0.0, "actions": {name: "refuse" for name in taxonomy.level_names[1:]}},
        {"threshold": 0.0, "enabled": False},
    ):
        pipeline.policy = Policy.from_dict({"default": rule}, taxonomy)
        pipeline.eta = Eta(Post(), settings=EtaSettings(max_new_tokens=99))
        (found,) = pipeline([ask("what is it?", [tiny.image(0)])], 12)
        assert found.action in ("refuse", "base") and found.eta is None and pipeline.eta.post.read == []


def test_a_file_of_rows_is_answered_and_not_again(folders, tmp_path, bases, capsys):
    table, output = rows(tmp_path), tmp_path / "out" / "answers.jsonl"
    args = [str(bases["llava"]), "--rows", str(table), "--output", str(output), "--eta", str(folders / "eta.yaml")]
    generate.main([*args, "--max-new-tokens", "8", "--batch-size", "2"])
    found = read(output)
    assert [row["id"] for row in found] == ["row 0", 2, "row 2", "row 3", "row 4"]
    assert all(
        row["eta"]["stage"] == "refused" and row["eta"]["reason"] == "the aligned answer is unsafe as well"
        for row in found
    )
    whole = output.read_bytes()
    output.write_bytes(whole[: len(whole) * 3 // 5])  # as a kill leaves it, amid a line
    generate.main([*args, "--max-new-tokens", "8", "--batch-size", "2"])
    again = read(output)
    drop = [{**row, "eta": {**row["eta"], "seconds": None}} for row in found]
    assert [{**row, "eta": {**row["eta"], "seconds": None}} for row in again] == drop
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["answered_now"] in (2, 3)
    with pytest.raises(SystemExit, match="2"):
        generate.main([*args, "--max-new-tokens", "9"])
    assert "holds answers of another run (max_new_tokens differ)" in capsys.readouterr().err


def test_a_run_that_is_killed_goes_on(folders, tmp_path):
    table, output = rows(tmp_path, 60), tmp_path / "answers.jsonl"
    command = [
        sys.executable,
        "-m",
        "safety_modules.cli.generate",
        str(folders / "safe"),
        "--rows",
        str(table),
        "--output",
        str(output),
    ]
    command += ["--max-new-tokens", "16", "--batch-size", "1"]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not output.exists() or output.read_bytes().count(b"\n") < 3:
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    before = output.read_bytes()
    assert before.count(b"\n") < 60
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = output.read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1]) and len({str(row["id"]) for row in read(output)}) == 60


def test_a_row_that_cannot_be_answered_keeps_its_place_and_stops_no_other(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    tiny.image(0).save(tmp_path / "a.png")
    lines = [
        '{"question": "a"}', "{", '{"question": ""}', '{"question": "b", "image": "../a.png"}',
        '{"question": "c", "image": "none.png"}',
        '{"id": 7.5, "question": "d"}', '{"question": "e", "image": "broken.png"}', '{"messages": [{"role": "user"}]}',
        '{"messages": "hi"}', "[]", '{"question": "f", "image": ["a.png", "a.png"]}',
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n\n")

    def answer(exchanges):
        if any("broken" in str(message) for message in exchanges):
            raise UserError("broken.png: not a readable image")
        return [{"answer": f"{len(exchange[0]['content'])} parts"} for exchange in exchanges]

    found = list(batch_answers.run(batch_answers.read(tmp_path / "rows.jsonl"), tmp_path / "out.jsonl", {}, answer, 4))
    assert found == read(tmp_path / "out.jsonl")
    assert found[0] == {"id": 1, "answer": "1 parts"} and found[10] == {"id": 11, "answer": "3 parts"}
    errors = {row["id"]: row["error"] for row in found if "error" in row}
    expected = {
        "line 2": "line 2: Expecting",
        3: "question is ''",
        4: "leaves",
        5: "no such file",
        "line 6": "id 7.5 is no text",
        7: "not a readable",
    }
    assert set(errors) == {*expected, 8, 9, "line 10"} and all(
        text in errors[number] for number, text in expected.items()
    )


def test_two_rows_with_one_id_and_a_strange_output_are_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": "x", "question": "a"}\n{"id": "x", "question": "b"}\n')
    with pytest.raises(UserError, match="rows 1 and 2 have the same id 'x'"):
        batch_answers.read(tmp_path / "rows.jsonl")
    (tmp_path / "out.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="does not say what it is of; name another output"):
        list(batch_answers.run([], tmp_path / "out.jsonl", {}, lambda rows: [], 4))
    assert (tmp_path / "out.jsonl").read_text() == "mine\n"


def test_a_stock_model_needs_eta_and_has_no_policy(bases, tmp_path, capsys):
    for more in ([], ["--language", "de"]):
        with pytest.raises(SystemExit, match="2"):
            generate.main([str(bases["llava"]), "what?", *more])
        assert "has no safety/, so no policy, language or log; give --eta" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        generate.main([str(bases["llava"])])


def test_one_question_with_eta(folders, capsys):
    args = [str(folders / "safe"), "what is it?", "--eta", str(folders / "eta.yaml"), "--max-new-tokens", "6"]
    generate.main(args)
    found = json.loads(capsys.readouterr().out)
    assert found["eta"]["stage"] == "refused" and found["eta"]["drawn"] > 0 and "types" in found


@pytest.mark.parametrize(
    "rule", [{"threshold": 1.0}, {"threshold": 0.0}, {"threshold": 0.0, "actions": "refuse"}, {"enabled": False}]
)
def test_a_pipelines_stream_says_what_its_call_would(folders, rule):
    pipeline = SafePipeline.from_pretrained(folders / "safe")
    taxonomy, asked = pipeline.model.taxonomy, ask("what is it?", [tiny.image(0)])
    if "actions" in rule:
        rule = {**rule, "actions": {name: "refuse" for name in taxonomy.level_names[1:]}}
    pipeline.policy = Policy.from_dict({"default": {"threshold": 0.0, **rule}}, taxonomy)
    for eta in (None, Eta(Post(), settings=EtaSettings("I cannot", 2, max_new_tokens=99, sentence_tokens=4))):
        pipeline.eta, told = eta, []
        (whole,) = pipeline([asked], 12)
        assert "".join(pipeline.stream(asked, 12, done=told.append)) == whole.answer == told[0].answer
        assert told[0].action == whole.action and (told[0].eta and told[0].eta.stage) == (whole.eta and whole.eta.stage)
