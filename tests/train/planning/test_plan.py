import json
import re
import subprocess

import pytest
import torch
from helpers import stage_runs as runs
from helpers import tiny
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor

from safety_modules.prompt.messages import ask
from train.config import read_config
from train.data.dataset import Collator
from train.loop.resume import MANIFEST
from train.plan import main
from train.planning import memory
from train.planning.activations import MicroBatch, activation_bytes
from train.planning.estimate import plan, strategy
from train.planning.memory import states
from train.planning.meta_model import MetaModel, part_of

CONFIGS = runs.ROOT / "train" / "configs"
STAGES = sorted(path.name for path in CONFIGS.glob("*.yaml"))
PAPER = ("stage1.yaml", "stage2_lora.yaml", "stage2_qlora.yaml", "head_only.yaml", "new_categories.yaml")
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("plan") / "data")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """LLaVA-1.5-7B's shape with a tiny tokenizer: configs alone, no weights."""
    folder, tok = tmp_path_factory.mktemp("plan") / "7b", tiny.tokenizer("llava")
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    )
    token = tok.convert_tokens_to_ids("<image>")
    stock = LlavaConfig(vision_config=vision, text_config=text, image_token_index=token, dtype="float16")
    images = CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    common = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    stock.save_pretrained(folder)
    LlavaProcessor(images, tok, chat_template=tiny.VICUNA, **common).save_pretrained(folder)
    return folder


def stage(name, base, data, output, *more):
    """A shipped stage on this base, its trained modules taken for new ones."""
    named = re.search(r"^(base|modules):", (CONFIGS / name).read_text(encoding="utf-8"), flags=re.MULTILINE)
    start = ["--base", base] + (["--modules", "null"] if not named or named[1] == "modules" else [])
    where = [
        "--data.root",
        data,
        "--output",
        output,
        "--data.validation",
        "[]",
        "--data.train",
        '[{"recipe": "custom"}]',
    ]
    quiet = ["--trainer.eval_strategy", "no", "--taxonomy", "null"]
    return ["--config", str(CONFIGS / name), *map(str, (*start, *where, *quiet, *more))]


@pytest.mark.parametrize("name", STAGES)
def test_every_shipped_stage_is_planned_on_a_7b_base_without_weights(name, large, data, tmp_path):
    config = read_config(stage(name, large, data, tmp_path / "run", "--data.max_length", 4096))
    made = plan(config, 8, 80)
    base = [c for c in made.counts if c.part in ("vision tower", "base projector", "output layer", "language model")]
    assert sum(c.parameters for c in base) == (455_825_408 if config.head_only else 7_063_427_072)
    assert made.steps.total >= 1
    if name in PAPER:  # the others are for a tiny base, with large batches and eager attention
        assert made.cheapest() is not None
    assert made.batch.tokens > 576 * 3, "the row of three images is the longest"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(
    "rules,lora,head_only", [(runs.STAGE1, None, False), (runs.LORA, LORA, False), (runs.STAGE1, None, True)]
)
def test_the_meta_model_counts_what_is_built(bases, data, tmp_path, family, rules, lora, head_only):
    if head_only:
        rules = {r"safety\.llm_tokens\..*": None, **rules}
    path = runs.config(data, tmp_path / "run", rules, bases[family], lora)
    config = read_config(["--config", str(path), "--head_only", str(head_only).lower()])
    found = {}
    for name, parameter in runs.trainer_of(config).model.named_parameters():
        key = (part_of(name), str(parameter.dtype)[6:], parameter.requires_grad)
        found[key] = found.get(key, 0) + parameter.numel()
    meta_model = MetaModel.of(config)
    assert {(c.part, c.dtype, c.trained): c.parameters for c in meta_model.counts()} == found
    assert all(parameter.is_meta for parameter in meta_model.model.parameters())


def test_the_shipped_deepspeed_files_are_the_strategies():
    names = ("", "zero2", "zero3", "zero2_offload", "zero3_offload")
    assert [strategy(name, 64).stage for name in names] == [0, 2, 3, 2, 3]
    assert {path.stem for path in CONFIGS.glob("zero*.json")} == set(names[1:])
    assert [strategy(name, 64).offload for name in names] == [False, False, False, True, True]
    assert strategy("zero3", 64).bucket == 64 * 64


def test_the_sum_in_the_qlora_stage_is_the_plans(large, data, tmp_path):
    text = (CONFIGS / "stage2_qlora.yaml").read_text(encoding="utf-8")
    stay, whole = (
        float(re.search(pattern, text)[1]) for pattern in (r"= [\d.]+: ([\d.]+) that stay", r"about ([\d.]+)\.")
    )
    config = read_config(stage("stage2_qlora.yaml", large, data, tmp_path / "run"))
    meta_model = MetaModel.of(config)
    held = states(meta_model.weights(), strategy("", 4096), meta_model.optimizer("paged_adamw_8bit"), 1, True)
    assert held.stay / 1e9 == pytest.approx(stay, abs=0.1)
    processor = meta_model.model.processor
    answer = "a red key " * 400
    sizes = {"risk_type": torch.tensor(0), "risk_level": torch.tensor(0), "row": "row"}
    row = processor.encode(ask("what is this?", [tiny.image(1)]), answer)
    row = {name: value[:2048] if value.ndim == 1 and len(value) > 2048 else value for name, value in row.items()}
    batch = MicroBatch(Collator(processor, packing=True)([{**row, **sizes}] * 2), 1, 2 * 2048, 2)
    activations = activation_bytes(config, batch, True, torch.bfloat16, cast=True)
    assert (held.stay + activations + memory.CUDA) / 1e9 == pytest.approx(whole, abs=0.2)


def test_the_command_prints_writes_and_probes_and_leaves_nothing(bases, data, tmp_path, capsys):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    before = sorted((tmp_path / "run").iterdir())
    main(["--config", str(path), "--gpus", "2", "--measure", "6", "--json", str(tmp_path / "plan.json")])
    out = capsys.readouterr().out
    made = json.loads((tmp_path / "plan.json").read_text())
    assert "torchrun --nproc_per_node 2 -m train.run --config" in out.replace("\n", "") and "rows per second" in out
    assert "not of a GPU" in out or torch.cuda.is_available()
    assert made["steps"]["rows"] == 22 and made["steps"]["rows_of_step"] == 8 and made["steps"]["total"] == 8
    assert made["speed"]["rows"] == 4 and made["hours"] > 0 and 0 <= made["speed"]["waiting"] < 1
    assert sorted((tmp_path / "run").iterdir()) == before


def test_an_unfinished_run_stays_as_it_is_and_is_named(bases, data, tmp_path, capsys):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    whole, half = (tmp_path / "run" / f"checkpoint-{step}" for step in (2, 4))
    for folder in (whole, half):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"1234")
    manifest = {"step": 2, "global_batch_size": 4, "processes": 1, "files": {"model.safetensors": 4}}
    (whole / MANIFEST).write_text(json.dumps(manifest))
    main(["--config", str(path), "--gpus", "1", "--measure", "3"])
    assert "continue from step 2" in capsys.readouterr().out.replace("\n", " ")
    assert half.is_dir() and whole.is_dir(), "even the half-written one is left"
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "--gpus", "3", "--measure", "0"])
    assert exit_.value.code == 2 and "4 rows, which cannot be divided among 3 processes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change,message",
    [
        (["--head_wieght", "1"], "head_wieght"),
        (["--rules", '{"safety\\\\..*": 1e-2}'], "no pattern matches the parameter 'base"),
        (["--dtype", "int3"], "dtype 'int3'"),
        (["--base", "null", "--modules", "nowhere", "--safety", "null"], "nowhere: no file safety/config.json"),
        (["--base", "no/such/base"], "no config that can be read"),
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.max_length", "20"], "more than max_length 20"),
        (["--trainer.deepspeed", "nowhere.json"], "there is no file 'nowhere.json'"),
        (["--gpus", "0"], "at least 1 GPU"),
        (["--lora.rank", "4", "--rules", '{".*": 1e-2}'], "lora: the rules also train"),
    ],
)
def test_what_is_wrong_ends_with_one_line_and_code_2(bases, data, tmp_path, capsys, change, message):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"])
    with pytest.raises(SystemExit) as exit_:
        main(["--config", str(path), "--measure", "0", *change])
    error = capsys.readouterr().err.splitlines()
    lines = [line for line in error if line.startswith("error: ")]
    assert exit_.value.code == 2 and len(lines) == 1 and message in lines[0], error


def test_16_bit_weights_and_quantised_ones_are_not_offered_what_is_refused(large, data, tmp_path):
    rules = ["--rules", json.dumps({r"safety\..*": None, r"base\.model\.language_model\..*": 1e-5, r"base\..*": None})]
    made = plan(read_config(stage("stage1.yaml", large, data, tmp_path, *rules)), 8, 80)
    verdicts = {row.strategy.name: row.verdict for row in made.strategies}
    assert verdicts["DDP"] == "needs dtype float32" and made.cheapest().strategy.name == "ZeRO-2"
    made = plan(read_config(stage("stage2_qlora.yaml", large, data, tmp_path)), 1, 24)
    assert made.cheapest().strategy.name == "DDP"
    assert [row.verdict for row in made.strategies if row.strategy.stage == 3] == ["not with quantize"] * 2


@pytest.mark.recipe
def test_two_processes_are_measured_and_the_first_prints(bases, data, tmp_path):
    path = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"], per_device_train_batch_size=2)
    command = runs.command("--config", path, "--measure", 4, processes=2)
    place = command.index(str(runs.ROOT / "tests" / "recipes" / "launch.py"))
    command[place : place + 1] = ["-m", "train.plan"]
    done = subprocess.run(command, cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows per second with 2 process(es)") == 1 and done.stdout.count("Parameters") == 1
