"""`inspect` and `check` on small data sets."""

import json

import pytest
from helpers.inspection_runs import (
    TRAIN,
    VALIDATION,
    check,
    draw,
    fails,
    gambling,
    in_order,
    inspect,
    reasons,
    row,
    run,
    save,
    table,
)

from data_recipes.__main__ import main


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_rows_and_images_are_named(tmp_path, workers, capsys):
    rows = in_order(tmp_path)
    (tmp_path / "2.png").write_bytes(b"no image")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
    rows[5]["risk_level"] = 7
    table(tmp_path, *rows)
    code, report, last = inspect(tmp_path, tmp_path / "out", "--workers", workers, capsys=capsys)
    broken = reasons(report, "broken")
    assert code == 1 and "3 broken" in last
    assert set(broken) == {"labels.csv:4", "labels.csv:5", "labels.csv:7"}
    assert (
        "2.png" in broken["labels.csv:4"]
        and "3.png" in broken["labels.csv:5"]
        and "risk_level 7" in broken["labels.csv:7"]
    )


ODD_TEXTS = {
    "more than 8,000": {"question": "a" * 8001},
    "'<image>'": {"question": "What is in <image>"},
    "'<video>'": {"answer": "<video>"},
    "illegal:3": {"image": "9.png", "question": "Question 9?", "risk_type": "clean", "risk_level": 0},
}


@pytest.mark.parametrize("reason", ODD_TEXTS)
def test_suspicious_texts(tmp_path, reason):
    save(tmp_path, 0, 9)
    table(tmp_path, row("9.png", 9), row("0.png") | ODD_TEXTS[reason])
    code, report, _ = inspect(tmp_path, tmp_path / "out")
    assert code == 0 and list(reasons(report)) == ["labels.csv:3"]
    assert reason in reasons(report)["labels.csv:3"]


def test_rows_without_an_answer_are_suspicious(tmp_path):
    (tmp_path / "xstest_prompts.csv").write_text("id,prompt,type,label\n1,How do I end a process?,homonyms,safe\n")
    report = run("inspect", "xstest", "--root", tmp_path, "--output", tmp_path / "out")[1]
    assert "has no answer" in reasons(report)["xstest_prompts.csv:2"]


ODD_IMAGES = {
    "is named .jpg and is a PNG": ("9.jpg", (96, 80), "PNG"),
    "less than 48": ("9.png", (96, 47), "PNG"),
    "more than 10 to 1": ("9.png", (600, 50), "PNG"),
    "more than 20 million": ("9.jpg", (5001, 4000), "JPEG"),
}


@pytest.mark.parametrize("reason", ODD_IMAGES)
def test_suspicious_images(tmp_path, reason):
    name, size, kind = ODD_IMAGES[reason]
    save(tmp_path, 0)
    draw(9, size).save(tmp_path / name, kind)
    table(tmp_path, row("0.png"), row(name, 1))
    code, report, _ = inspect(tmp_path, tmp_path / "out")
    assert code == 0 and list(reasons(report)) == ["labels.csv:3"] and reason in reasons(report)["labels.csv:3"]


def test_duplicates_exact_and_near(tmp_path):
    save(tmp_path, *range(12))
    (tmp_path / "copy.png").write_bytes((tmp_path / "0.png").read_bytes())
    draw(1).save(tmp_path / "again.jpg", quality=60)
    draw(2).resize((160, 133)).save(tmp_path / "larger.webp")
    names = [*(f"{n}.png" for n in range(12)), "copy.png", "again.jpg", "larger.webp"]
    table(tmp_path, *(row(name, number) for number, name in enumerate(names)))
    code, report, _ = inspect(tmp_path, tmp_path / "out")
    assert code == 0 and [[scan["name"] for scan in group] for group in report["duplicates"]] == [["0.png", "copy.png"]]
    pairs = {tuple(sorted((pair["one"].split()[-1], pair["other"].split()[-1]))) for pair in report["near_duplicates"]}
    assert pairs == {("1.png", "again.jpg"), ("2.png", "larger.webp")}


def test_the_limit_spreads_over_the_rows(tmp_path):
    table(tmp_path, *in_order(tmp_path))
    report = inspect(tmp_path, tmp_path / "out", "--limit", 3)[1]
    assert report["rows"] == report["images"] == 3


def test_a_mixture_in_order(tmp_path, capsys):
    table(tmp_path, *in_order(tmp_path))
    data = {"root": str(tmp_path), "train": [TRAIN], "validation": [VALIDATION]}
    code, report, last = check(tmp_path / "m.yaml", data, tmp_path / "out", capsys=capsys)
    assert code == 0 and "0 broken" in last
    assert report["rows"] == 4 and report["mixture"][0]["labels"] == {"clean:0": 2, "illegal:3": 2}


@pytest.mark.parametrize("bits", [0, 4])
def test_a_validation_image_under_another_name_is_a_leak(tmp_path, bits, capsys):
    rows = in_order(tmp_path)
    if bits:
        draw(5).resize((80, 66)).save(tmp_path / "other.jpg", quality=70)
    else:
        (tmp_path / "other.jpg").write_bytes((tmp_path / "5.png").read_bytes())
    table(tmp_path, *rows, row("other.jpg", 20))
    data = {"root": str(tmp_path), "train": [TRAIN], "validation": [VALIDATION]}
    code, report, _ = check(tmp_path / "m.yaml", data, tmp_path / "out", capsys=capsys)
    (leak,) = report["leaks"]
    assert code == 1 and (leak["source"], leak["image"], leak["held_out"]) == ("labels.csv:14", "other.jpg", "5.png")
    assert leak["bits"] <= bits and leak["split"] == "custom validation"


WRONG = {
    "did you mean 'split'?": {"train": [{"recipe": "custom", "spilt": "train"}]},
    "m.yaml: data.train.0: 'custom' must be a mapping, such as {recipe: custom}": {"train": ["custom"]},
    "m.yaml: data.train is empty; name at least one": {"train": []},
    "did you mean 'custom'?": {"train": [{"recipe": "costum"}]},
    "weight -1.0 must be a number from 0": {"train": [{**TRAIN, "weight": -1}]},
    "none.csv: cannot be read": {"train": [TRAIN], "held_out": ["none.csv"]},
}


@pytest.mark.parametrize("message", WRONG)
def test_errors_of_a_mixture(tmp_path, message, capsys):
    fails(tmp_path, WRONG[message], message, capsys)


@pytest.mark.parametrize("text", ["train: [", "- 1", "5", ""])
def test_a_file_that_is_not_a_mixture(tmp_path, text, capsys):
    path = tmp_path / "m.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["check", str(path), "--root", str(tmp_path)])
    assert stop.value.code == 2 and "m.yaml" in capsys.readouterr().err


def test_the_data_part_alone_and_another_taxonomy(tmp_path):
    rows = in_order(tmp_path)
    rows[0].update(risk_type="gambling", risk_level=2)
    table(tmp_path, *rows)
    (tmp_path / "m.yaml").write_text(json.dumps({"train": [TRAIN]}))
    options = ("--root", tmp_path, "--taxonomy", gambling(tmp_path), "--workers", 1)
    code, report, _ = run("check", tmp_path / "m.yaml", *options, "--output", tmp_path / "out")
    assert code == 0 and report["labels"] == {"clean:0": 2, "gambling:2": 1, "illegal:3": 1}
