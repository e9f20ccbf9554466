"""The benchmarks run whole on a model of a few weights, and take turns when they time."""

import math

import pytest
import torch

from scripts import benchmark
from train.benchmarks import against_plain, data_loading, timing
from train.benchmarks.shapes import BenchmarkShape, build_model, layers, random_rows, row_lengths

SHAPE = BenchmarkShape(
    "mini",
    layers(16, 32, 2, 2, image_size=16, patch_size=8),
    layers(32, 64, 1, 2, vocab_size=1024),
    {"head_tokens": 2, "llm_tokens": 2, "projector_width": 8},
    batch=4,
    pool=8,
    repeats=1,
    scale=0.05,
    answer=3,
    rank=2,
)


def test_functions_take_turns_and_the_warm_up_does_not_count(monkeypatch):
    calls, ticks = [], iter([0, 100, 100, 200, 200, 201, 201, 203, 203, 206, 206, 212])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: float(next(ticks)))
    functions = {"a": lambda: calls.append("a") or len(calls), "b": lambda: calls.append("b")}
    timings = timing.time_in_turns(functions, 2, warm_up=True)
    assert calls == ["a", "b"] * 3 and timings["a"].seconds == [1.0, 3.0] and timings["b"].seconds == [2.0, 6.0]
    assert timings["a"].result == 5 and timings["b"].median == 4.0
    assert timings["b"].overhead(timings["a"]) == pytest.approx(1.0)


def test_half_of_a_text_is_its_answer_and_plain_rows_have_no_safety_tokens():
    model = build_model(SHAPE, "meta", torch.float32)
    for tokens in (True, False):
        (row,) = random_rows(SHAPE, model, [(20, True)], tokens)
        patches = model.backbone.patches(model.config)
        assert len(row["input_ids"]) == 1 + tokens * SHAPE.safety["llm_tokens"] + patches + 20
        assert int((row["labels"] >= 0).sum()) == int(row["question_mask"].sum()) == 10
    images = [image for _, image in row_lengths(SHAPE, 500)]
    assert 0.9 < sum(images) / len(images) < 0.98


def test_the_benchmark_measures_every_variant(monkeypatch):
    monkeypatch.setattr(benchmark, "LLAVA_7B", SHAPE)
    results = benchmark.measure(SHAPE, "cpu", torch.float32)
    numbers = {name: value for name, value in results.items() if isinstance(value, float)}
    assert len(numbers) >= 12 and all(map(math.isfinite, numbers.values()))
    assert list(results["raw"]["training"]) == list(against_plain.VARIANTS)
    flops = {name: values["flops"] for name, values in results["raw"]["training"].items() if values["flops"]}
    assert flops["features"] < flops["packed"] > flops["plain_packed"]


def test_the_data_benchmark_reads_what_it_wrote(tmp_path):
    opened = data_loading.measure_opening(tmp_path, 50)
    assert opened["open_rows"] == 50 and opened["open_row_microseconds"] > 0
    loaded = data_loading.measure_loading(tmp_path, 4, workers=0)
    assert loaded["load_ratio"] == loaded["load_rows_per_second"] / loaded["decode_rows_per_second"]
