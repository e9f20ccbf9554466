import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from helpers import tiny
from safetensors.torch import load_file

from data_recipes.core import held_out
from data_recipes.core.rows import Rows
from safety_modules import SafePipeline, SafeVLM, ask
from safety_modules.checkpoints.load import load
from safety_modules.config import ConfigError
from safety_modules.taxonomy import Taxonomy
from train.config import TrainConfig, read_config
from train.data.dataset import ExchangeDataset
from train.data.mixture import check_leaks, read_train
from train.run import build, main, prepare, train, training_arguments

TYPES = ("privacy", "clean", "insults")
SHAPE = [
    "--safety.head_tokens",
    "4",
    "--safety.llm_tokens",
    "4",
    "--safety.projector_width",
    "16",
    "--safety.projector_depth",
    "1",
]
STAGE1 = {r"safety\..*": 1e-2, r"base\..*": None}
STAGE2 = {r"base\..*lora_.*": 1e-2, r"base\..*": None, r"safety\.llm_tokens\..*": 1e-2, r"safety\..*": None}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Twelve images with labels, one row without an image."""
    root = tmp_path_factory.mktemp("data")
    rows = ["image,question,answer,risk_type,risk_level,split"]
    for i in range(12):
        tiny.image(i).save(root / f"{i}.png")
        rows.append(f"{i}.png,,,{TYPES[i % 3]},,{'validation' if i > 8 else 'train'}")
    rows.append(",what colour?,a red key,clean,0,train")
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def config(table, output, rules, *more):
    path = output / "stage.yaml"
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            {
                "output": str(output),
                "data": {
                    "root": str(table),
                    "train": [{"recipe": "custom"}],
                    "validation": [{"recipe": "custom", "split": "validation"}],
                },
                "rules": rules,
                "trainer": {
                    "max_steps": 3,
                    "per_device_train_batch_size": 2,
                    "logging_steps": 1,
                    "eval_strategy": "steps",
                    "eval_steps": 2,
                    "save_steps": 2,
                    "disable_tqdm": True,
                    "report_to": "none",
                },
            }
        ),
        encoding="utf-8",
    )
    return read_config(["--config", str(path), *map(str, more)])


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def stage1(request, bases, table, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "stage1"
    return train(config(table, output, STAGE1, "--base", bases[request.param], *SHAPE))


def test_contract_3_stage_1_moves_the_safety_modules_alone(stage1):
    base = json.loads((stage1 / "safety" / "config.json").read_text())["base"]
    saved = load_file(stage1.parent / "checkpoint-2" / "model.safetensors")
    after = load_file(stage1 / "safety" / "model.safetensors")
    assert {name.removeprefix("safety.") for name in saved} == set(after)
    assert [name for name in after if torch.equal(after[name], saved[f"safety.{name}"])] == []  # from step 2 to step 3
    fresh, trained = SafeVLM.attach(base, tiny.safety_config(projector_width=16)), load(stage1)
    for (name, a), b in zip(fresh.base.state_dict().items(), trained.base.state_dict().values()):
        assert torch.equal(a, b), name


def test_contract_3_in_both_stages_moved_equals_requires_grad(stage1, table, tmp_path):
    trainer, *_ = prepare(config(table, tmp_path / "s2", STAGE2, "--modules", stage1, "--lora.rank", 2))
    model = trainer.model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer.train(ignore_keys_for_eval=["logits"])
    wrong = [n for n, p in model.named_parameters() if torch.equal(p, before[n]) is p.requires_grad]
    assert wrong == []
    lora = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" in n]
    assert lora and not [name for name in lora if "lm_head" in name or "vision_tower" in name or "projector" in name]


def test_losses_and_head_metrics_are_logged_apart(stage1):
    history = json.loads((stage1.parent / "history.json").read_text())
    steps = [row for row in history if "loss" in row]
    assert len(steps) == 3 and all(
        row["loss"] == pytest.approx(row["lm"] + 10 * (row["type"] + row["level"]), rel=1e-3) for row in steps
    )
    evals = [row for row in history if "eval_type_macro_f1" in row]
    assert evals and all(0 <= row["eval_level_accuracy"] <= 1 for row in evals)


def test_accumulation_gives_the_same_step(bases, table, tmp_path):
    losses = {}
    for name, batch, parts in (("whole", 4, 1), ("parts", 1, 4)):
        more = ["--trainer.per_device_train_batch_size", batch, "--trainer.gradient_accumulation_steps", parts]
        train(config(table, tmp_path / name, STAGE1, "--base", bases["llava"], *SHAPE, *more))
        history = json.loads((tmp_path / name / "history.json").read_text())
        losses[name] = [row["loss"] for row in history if "loss" in row]
    assert losses["whole"] == pytest.approx(losses["parts"], abs=1e-3)


def test_a_run_goes_on_from_its_checkpoint(bases, table, tmp_path):
    shared = ["--base", bases["llava"], *SHAPE, "--trainer.lr_scheduler_type", "constant"]
    train(config(table, tmp_path / "whole", STAGE1, *shared, "--trainer.max_steps", 4))
    train(config(table, tmp_path / "two", STAGE1, *shared, "--trainer.max_steps", 2))
    train(config(table, tmp_path / "two", STAGE1, *shared, "--trainer.max_steps", 4))
    whole, two = (load_file(tmp_path / name / "final" / "safety" / "model.safetensors") for name in ("whole", "two"))
    for name, value in whole.items():
        assert torch.allclose(value, two[name], atol=1e-5), name


def test_stage_2_leaves_an_adapter_that_loads(stage1, table, tmp_path):
    final = train(config(table, tmp_path / "s2", STAGE2, "--modules", stage1, "--lora.rank", 2))
    assert (final / "adapter" / "adapter_model.safetensors").exists()
    exchange = [ask("what is this?", [tiny.image(1)])]
    merged, beside = load(final), load(final, merge=False)
    assert SafePipeline(merged).answer(exchange, [""], 4) == SafePipeline(beside).answer(exchange, [""], 4)
    with pytest.raises(ConfigError, match="holds LoRA weights; export it first"):
        build(config(table, tmp_path / "s3", STAGE2, "--modules", final, "--lora.rank", 2))


def test_full_training_writes_the_whole_model(stage1, table, tmp_path):
    rules = {r"base\.model\.language_model\.norm.*": 1e-2, r"base\..*": None, r"safety\..*": None}
    final = train(config(table, tmp_path / "full", rules, "--modules", stage1))
    moved = load(final).base.model.language_model.norm.weight
    assert (final / "config.json").exists()
    assert not torch.equal(moved, load(stage1).base.model.language_model.norm.weight)


def test_hints_come_to_a_share_of_the_risky_rows(bases, table):
    taxonomy = Taxonomy.default()
    model = SafeVLM.attach(bases["llava"], tiny.safety_config())
    made = config(table, table.parent / "unused", STAGE1, "--base", bases["llava"], *SHAPE)
    samples = read_train(made.data, taxonomy, 0)[0]
    texts = {}
    for rate in (0.0, 0.5, 1.0):
        rows = ExchangeDataset(
            samples, model.processor, taxonomy, dataclasses.replace(made.data, hint_rate=rate), train=True
        )
        decoded = [model.processor.tokenizer.decode(row["input_ids"]) for row in rows]
        told = [taxonomy.hints(s.risk_type, s.risk_level) if s.risk_level else [] for s in samples]
        texts[rate] = [(any(hint in text for hint in hints), bool(hints)) for text, hints in zip(decoded, told)]
        used = {hint for text, hints in zip(decoded, told) for hint in hints if hint in text}
    assert not any(hinted for hinted, _ in texts[0.0])
    assert all(hinted == risky for hinted, risky in texts[1.0])
    assert 0 < sum(hinted for hinted, _ in texts[0.5]) < sum(hinted for hinted, _ in texts[1.0])
    assert len(used) > len(
        {sample.risk_type for sample in samples if sample.risk_level}
    )  # several wordings of one hint


def test_forgeries_come_to_a_share_of_the_training_rows_and_keep_question_and_label(bases, table):
    taxonomy = Taxonomy.default()
    model = SafeVLM.attach(bases["llava"], tiny.safety_config())
    made = config(table, table.parent / "unused", STAGE1, "--base", bases["llava"], *SHAPE)
    samples = list(read_train(made.data, taxonomy, 0)[0]) * 8
    samples = [dataclasses.replace(sample, source=f"{sample.source}/{i}") for i, sample in enumerate(samples)]
    data = dataclasses.replace(made.data, injection_rate=0.5)
    for train_, low, high in ((True, 0.3, 0.7), (False, 0.0, 0.0)):
        rows = ExchangeDataset(samples, model.processor, taxonomy, data, train=train_)
        texts = [rows.messages(sample)[-1]["content"][-1]["text"] for sample in samples]
        assert all(sample.question in text for sample, text in zip(samples, texts))
        assert low <= sum(sample.question != text for sample, text in zip(samples, texts)) / len(samples) <= high
        assert [rows.messages(sample) for sample in samples[:5]] == [rows.messages(sample) for sample in samples[:5]]


@pytest.mark.parametrize(
    "change,message",
    [
        ({"trainer": {"learning_rat": 1}}, "trainer.learning_rat: .*did you mean 'learning_rate'"),
        ({"data": {"root": "x", "train": []}}, "data.train is empty"),
        ({"data": {"root": "x", "trian": []}}, "trian.*did you mean 'train'"),
        ({"head_wieght": 1}, "head_wieght.*did you mean 'head_weight'"),
        ({"base": None}, "give one, base to start, modules to go on"),
        ({"safety": {"head_tokens": -2}}, "head_tokens: -2"),
        ({"data": {"root": "x", "train": [{"recipe": "custom"}], "hint_rate": 2}}, "hint_rate: 2.0 is a share"),
        ({"head_weight": "much"}, "head_weight"),
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


def test_a_bare_no_of_yaml_is_no(table, tmp_path):
    made = config(
        table, tmp_path / "run", STAGE1, "--base", "x", "--trainer.eval_strategy", "no", "--trainer.use_cpu", "true"
    )
    assert made.trainer["eval_strategy"] is False
    assert training_arguments(made).eval_strategy == "no"


def test_numbers_of_yaml_arrive_as_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "output: o\nbase: b\ndata: {root: r, train: [{recipe: custom}]}\nrules: {'safety.*': 1e-5, 'base.*': null}\n"
        "trainer: {learning_rate: 2e-5}\n"
    )
    made = read_config(["--config", str(path), "--lora.rank", "8"])
    assert isinstance(made, TrainConfig) and made.lora.rank == 8
    assert made.rules == {"safety.*": 1e-5, "base.*": None} and made.trainer["learning_rate"] == 2e-5


def test_the_shipped_configurations_are_valid():
    folder = Path(__file__).parents[2] / "train" / "configs"
    for path in folder.glob("*.yaml"):
        named = re.search(r"^(base|modules):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        more = ["--data.root", "x", "--output", "o"] + (
            [] if named else ["--modules", "m"]
        )  # the runs' own name theirs
        assert read_config(["--config", str(path), *more]).rules


def test_a_broken_image_names_its_row(bases, table, tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    (root / "bad.png").write_text("no image")
    (root / "labels.csv").write_text("image,risk_type,split\nbad.png,privacy,train\n", encoding="utf-8")
    made = config(table, tmp_path / "run", STAGE1, "--base", bases["llava"], *SHAPE)
    rows = ExchangeDataset(
        read_train(dataclasses.replace(made.data, root=str(root)), Taxonomy.default(), 0)[0],
        SafeVLM.attach(bases["llava"], tiny.safety_config()).processor,
        Taxonomy.default(),
        made.data,
    )
    with pytest.raises(ValueError, match=r"labels.csv:2: .*bad.png: not a readable image"):
        rows[0]


def held_out_rows(tmp_path):
    """A table for training and one for validation, with one image in both under two names."""
    root = tmp_path / "own"
    root.mkdir()
    for split, start in (("train", 0), ("validation", 10)):
        for number in range(4):
            tiny.image(start + number).save(root / f"{split}{number}.png")
        lines = [f"{split}{number}.png,Q,A,{('clean', 'privacy')[number % 2]}" for number in range(4)]
        (root / f"{split}.csv").write_text("\n".join(["image,question,answer,risk_type", *lines]) + "\n")
    return root


def test_the_composition_is_kept_in_the_run_and_a_held_out_image_stops_it(bases, table, tmp_path, capsys):
    root = held_out_rows(tmp_path)
    options = ["--data.root", root, "--data.validation", json.dumps([{"recipe": "custom", "split": "validation"}])]
    train(config(table, tmp_path / "run", STAGE1, "--base", bases["llava"], *SHAPE, *options, "--trainer.max_steps", 1))
    (part,) = json.loads((tmp_path / "run/mixture.json").read_text())
    assert part["labels"] == {"clean:0": 2, "privacy:2": 2} and "4 rows to train on" in capsys.readouterr().out
    (root / "train2.png").write_bytes((root / "validation1.png").read_bytes())
    with pytest.raises(
        ValueError, match=r"1 images to train on are held out(.|\n)*train.csv:4: train2.png is validation1"
    ):
        train(
            config(
                table, tmp_path / "again", STAGE1, "--base", bases["llava"], *SHAPE, *options, "--trainer.max_steps", 1
            )
        )
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["stage.yaml"], (
        "nothing is written before all is read"
    )


def test_images_of_a_test_table_and_of_a_file_of_marks_are_held_out_too(bases, table, tmp_path):
    root = held_out_rows(tmp_path)
    (root / "validation.csv").rename(root / "test.csv")
    made = dataclasses.replace(
        config(table, tmp_path / "r", STAGE1, "--base", bases["llava"], *SHAPE).data, root=str(root), validation=[]
    )
    rows, empty = read_train(made, Taxonomy.default(), 0)[0], Rows.of([])
    check_leaks(made, Taxonomy.default(), rows, empty)
    (root / "train0.png").write_bytes((root / "validation3.png").read_bytes())
    with pytest.raises(ValueError, match="train.csv:2: train0.png is validation3.png of custom test"):
        check_leaks(made, Taxonomy.default(), rows, empty)
    (root / "test.csv").unlink()
    check_leaks(made, Taxonomy.default(), rows, empty)
    held_out.write(tmp_path / "marks.csv", [held_out.mark(root / "validation3.png", "published")])
    with pytest.raises(ValueError, match="of published"):
        check_leaks(dataclasses.replace(made, held_out=[str(tmp_path / "marks.csv")]), Taxonomy.default(), rows, empty)
