import json

import pytest
import torch
from helpers import stage_runs as runs
from helpers import tiny
from safetensors.torch import load_file

from safety_modules import SafePipeline, SafeVLM, ask
from safety_modules.checkpoints.load import load
from safety_modules.config import ConfigError
from safety_modules.model.load_base import load_base
from train.build import load_model
from train.config import read_config
from train.run import train

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
    trainer = runs.trainer_of(config(table, tmp_path / "s2", STAGE2, "--modules", stage1, "--lora.rank", 2))
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
        load_model(config(table, tmp_path / "s3", STAGE2, "--modules", final, "--lora.rank", 2))


def test_full_training_writes_the_whole_model(stage1, table, tmp_path):
    rules = {r"base\.model\.language_model\.norm.*": 1e-2, r"base\..*": None, r"safety\..*": None}
    final = train(config(table, tmp_path / "full", rules, "--modules", stage1))
    moved = load(final).base.model.language_model.norm.weight
    assert (final / "config.json").exists()
    assert not torch.equal(moved, load(stage1).base.model.language_model.norm.weight)


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


def test_the_private_name_of_transformers_that_saving_sets_exists(bases):
    """`train.run.save` resets it under ZeRO-3."""
    assert hasattr(load_base(bases["llava"]), "_weight_conversions"), (
        "transformers keeps no PreTrainedModel._weight_conversions any more: see how save_pretrained renames keys, "
        "and change train.run.save"
    )
