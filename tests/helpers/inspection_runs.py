"""Drawings: neutral images that differ, small data sets of them, and the command line on those."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from data_recipes.__main__ import main
from safety_modules.taxonomy import Taxonomy

TRAIN = {"recipe": "custom", "split": "train"}
VALIDATION = {"recipe": "custom", "split": "validation"}
COLUMNS = ("image", "question", "answer", "risk_type", "risk_level", "split")


def draw(number, size=(96, 80)):
    """Soft patches of colour, other ones for each number."""
    colors = np.random.default_rng(number).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)


def save(folder, *numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        draw(number).save(folder / f"{number}.png")
    return folder


def row(image, number=0, risky=True, split="train", **cells):
    """A row that is in order, but for what `cells` says."""
    label = {"risk_type": "illegal", "risk_level": 3} if risky else {"risk_type": "clean", "risk_level": 0}
    texts = {"question": f"Question {number}?", "answer": f"Answer {number}."}
    return {"image": image, "split": split, **texts, **label, **cells}


def table(folder, *rows):
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


def in_order(folder, count=4):
    """Rows of the splits train, validation and test, with one image each, half of them risky."""
    save(folder, *range(3 * count))
    splits = ("train", "validation", "test")
    return [row(f"{n}.png", n, n % 2 == 0, splits[n // count]) for n in range(3 * count)]


def run(*args, capsys=None):
    """Exit code, report and the terminal's last line of a command that writes into the folder named last."""
    code = main([str(arg) for arg in args])
    report = json.loads((args[-1] / "report.json").read_text(encoding="utf-8"))
    return code, report, capsys.readouterr().out.strip().splitlines()[-1] if capsys else ""


def inspect(folder, output, *options, capsys=None):
    return run("inspect", "custom", "--root", folder, "--workers", 1, *options, "--output", output, capsys=capsys)


def check(path, data, output, *options, capsys=None, **stage):
    """`check` on a mixture of the recipe custom."""
    path.write_text(json.dumps({**stage, "data": data}), encoding="utf-8")  # JSON is YAML
    return run("check", path, "--workers", 1, *options, "--output", output, capsys=capsys)


def reasons(report, kind="suspicious"):
    return {finding["source"]: finding["reason"] for finding in report[kind]}


def gambling(folder):
    """A taxonomy file with a further type."""
    own = Taxonomy.default().to_dict()
    own["types"]["gambling"] = {"level": 2, "hint": "gambling"}
    (folder / "own.yaml").write_text(json.dumps(own))
    return folder / "own.yaml"


def fails(folder, data, message, capsys, **stage):
    table(folder, *in_order(folder))
    with pytest.raises(SystemExit) as stop:
        check(folder / "m.yaml", {"root": str(folder), **data}, folder / "out", **stage)
    assert stop.value.code == 2 and message in capsys.readouterr().err
