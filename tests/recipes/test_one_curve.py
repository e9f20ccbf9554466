import pytest
import torch
from helpers import stage_runs as runs
from safetensors.torch import load_file

from data_recipes import load
from safety_modules.taxonomy import Taxonomy
from train.loop.sampler import StepSampler

pytestmark = pytest.mark.recipe
ZERO2, ZERO3, OFFLOAD2, OFFLOAD3 = (
    {"deepspeed": str(runs.ROOT / "train" / "configs" / f"{name}.json")}
    for name in ("zero2", "zero3", "zero2_offload", "zero3_offload")
)
TWO, ONE = {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
CPU = {"DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.table(tmp_path_factory.mktemp("scale") / "data")


@pytest.fixture(scope="module")
def stage1(bases, data, tmp_path_factory):
    """The curve of one process with four rows at a time, and its result."""
    output = tmp_path_factory.mktemp("scale") / "stage1"
    runs.run("--config", runs.config(data, output, runs.STAGE1, bases["llava"]))
    return output


@pytest.fixture(scope="module")
def stage2(bases, data, stage1, tmp_path_factory):
    """The same of stage 2, adapters and the language model's safety tokens, on stage 1's result."""
    output = tmp_path_factory.mktemp("scale") / "stage2"
    runs.run("--config", runs.config(data, output, runs.LORA, stage1 / "final", lora=LORA))
    return output


LORA = {"rank": 4, "alpha": 8, "dropout": 0.0}


def assert_same_curve(output, expected):
    """The same losses to 1e-4, at every step, and the same weights at the end."""
    mine, other = runs.losses(output), runs.losses(expected)
    assert len(other) == 8 and [row["step"] for row in mine] == [row["step"] for row in other]
    for row, reference in zip(mine, other):
        for name, value in reference.items():
            assert row[name] == pytest.approx(value, rel=1e-4, abs=1e-4), (row["step"], name)
    files = sorted(path.relative_to(expected) for path in (expected / "final").rglob("*.safetensors"))
    assert files
    for name in files:
        weights, reference = load_file(output / name), load_file(expected / name)
        assert weights.keys() == reference.keys()
        for key, value in reference.items():
            assert weights[key].dtype == value.dtype
            assert torch.allclose(weights[key], value, atol=2e-3), key  # AdamW divides small gradients by small roots


@pytest.mark.parametrize(
    "name,processes,changes,packing",
    [
        ("accumulated", 1, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}, False),
        ("packed", 1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}, True),
        ("two processes", 2, TWO, False),
        ("two processes, packed", 2, ONE, True),
        ("ZeRO-2", 2, {**TWO, **ZERO2}, False),
        ("ZeRO-3", 2, {**ONE, **ZERO3}, False),
    ],
)
def test_contract_6_stage_1_is_one_curve(bases, data, stage1, tmp_path, name, processes, changes, packing):
    config = runs.config(data, tmp_path / "run", runs.STAGE1, bases["llava"], **changes)
    runs.run(
        "--config", config, "--data.packing", packing, processes=processes, **(CPU if "deepspeed" in changes else {})
    )
    assert_same_curve(tmp_path / "run", stage1)


@pytest.mark.parametrize(
    "name,processes,changes",
    [
        ("ZeRO-2", 2, {**TWO, **ZERO2}),
        ("ZeRO-3", 2, {**ONE, **ZERO3}),
        ("ZeRO-2, offload", 2, {**TWO, **OFFLOAD2}),
        ("ZeRO-3, offload", 2, {**ONE, **OFFLOAD3}),
    ],
)
def test_contract_6_stage_2_is_one_curve(data, stage1, stage2, tmp_path, name, processes, changes):
    config = runs.config(data, tmp_path / "run", runs.LORA, stage1 / "final", lora=LORA, **changes)
    runs.run("--config", config, "--data.packing", True, processes=processes, **CPU)
    assert_same_curve(tmp_path / "run", stage2)


def test_the_rows_of_these_runs_meet_every_mixture_of_images(data):
    """In some step one process has a row without an image while the other has one, two or three."""
    rows = list(load("custom", data, "train", Taxonomy.default()))
    order = list(StepSampler(len(rows), 4, 42))
    pairs = {tuple(len(rows[row].images) for row in order[i : i + 2]) for i in range(0, 32, 2)}
    assert {counts for pair in pairs for counts in pair} == {0, 1, 2, 3}
    assert any(min(pair) == 0 < max(pair) for pair in pairs)


def test_full_training_under_zero_3_is_one_curve_and_leaves_a_whole_model(bases, data, tmp_path):
    rules = {
        r"base\.model\.language_model\..*": 1e-3,
        r"base\.lm_head\..*": 1e-3,
        r"base\..*": None,
        r"safety\..*": 1e-2,
    }
    for name, processes, changes in (("one", 1, {}), ("zero3", 2, {**TWO, **ZERO3})):
        config = runs.config(data, tmp_path / name, rules, bases["llava"], **changes)
        runs.run("--config", config, processes=processes, **(CPU if changes else {}))
    assert_same_curve(tmp_path / "zero3", tmp_path / "one")
    assert (tmp_path / "zero3" / "final" / "config.json").is_file()


def test_under_zero_3_no_process_holds_the_whole_base_and_the_modules_are_whole(bases, data, stage1, tmp_path):
    config = runs.config(data, tmp_path / "run", runs.LORA, stage1 / "final", lora=LORA, **{**TWO, **ZERO3})
    text = runs.run("--config", config, processes=2, SHOW_PARTS="1", **CPU)
    parts = [line.split()[1:] for line in text.splitlines() if line.startswith("PARTS ")]
    assert len(parts) == 2
    for held, whole, modules in parts:
        assert float(held) <= 0.51 * float(whole) and float(modules) == pytest.approx(size(stage1), rel=1e-6)


def size(stage1):
    weights = load_file(stage1 / "final" / "safety" / "model.safetensors")
    return sum(value.double().abs().sum().item() for value in weights.values())
