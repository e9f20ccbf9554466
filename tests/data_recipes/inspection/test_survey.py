"""What the commands of data_recipes find and print."""

import json
import re

import pytest
from helpers.dataset_files import images, scene, write_csv, write_json
from PIL import Image

from data_recipes.__main__ import main
from data_recipes.core.held_out import NEAR_BITS, Fingerprint
from data_recipes.inspection.image_scan import ImageScan, near_duplicates
from safety_modules.reporting import gallery

BASE = {"question": "What is it?", "risk_type": "privacy", "risk_level": 2}


@pytest.fixture
def run(capsys, tmp_path):
    def run(*args, output="out"):
        code = main([*map(str, args), "--output", str(tmp_path / output), "--workers", "1"])
        report = json.loads((tmp_path / output / "report.json").read_text())
        return code, report, (tmp_path / output / "gallery.html").read_text(), " ".join(capsys.readouterr().out.split())

    return run


def table(folder, rows, name="labels.csv"):
    """A table of the user's own, with a scene for each image that is not there yet."""
    for number, row in enumerate(rows):
        if row["image"] and not (folder / row["image"]).exists():
            scene(folder / row["image"], number)
    write_csv(
        folder / name,
        [{"answer": f"Answer {number}.", "split": "train", **BASE, **row} for number, row in enumerate(rows)],
    )
    return folder


def test_inspect_counts_labels_lengths_sizes_and_formats(run, tmp_path):
    rows = [{"image": f"{number}.png"} for number in range(6)] + [
        {"image": f"c{number}.jpg", "risk_type": "clean", "risk_level": 0} for number in range(3)
    ]
    code, report, page, printed = run("inspect", "custom", "--root", table(tmp_path / "d", rows), "--split", "train")
    assert code == 0 and report["labels"] == {"clean:0": 3, "privacy:2": 6}
    assert report["lengths"] == {"unit": "characters", "question": [11.0] * 4, "answer": [9.0] * 4}
    assert report["sizes"] == {"width": [240.0] * 4, "height": [180.0] * 4} and report["formats"] == {
        "PNG RGB": 6,
        "JPEG RGB": 3,
    }
    assert "0 broken, 0 leaking, 0 suspicious" in printed and page.count("<img ") == 9
    assert page.count('class="view" aria-pressed="false"') == 6, "the risky ones, and no others, are blurred"


def test_inspect_names_broken_images_and_rows_and_ends_with_1(run, tmp_path):
    folder = table(tmp_path / "d", [{"image": "a.png"}, {"image": "b.png"}, {"image": "c.png", "risk_type": "privcy"}])
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:300])
    code, report, page, printed = run("inspect", "custom", "--root", folder, "--split", "train")
    assert code == 1 and "2 broken" in printed
    reasons = {row["source"]: row["reason"] for row in report["broken"]}
    assert "b.png: " in reasons["labels.csv:3"] and "not a readable image" in reasons["labels.csv:3"]
    assert "did you mean 'privacy'" in reasons["labels.csv:4"] and "labels.csv:3" in page


def test_suspicious_rows_are_named(run, tmp_path):
    folder = tmp_path / "d"
    images(folder, "tiny.png")
    Image.new("RGB", (20, 20)).save(folder / "tiny.png")
    Image.new("RGB", (700, 60)).save(folder / "long.png")
    Image.new("RGB", (80, 80)).save(folder / "bmp.jpg", "BMP")
    rows = [
        {"image": "tiny.png"},
        {"image": "long.png"},
        {"image": "bmp.jpg"},
        {"image": "x.png", "question": "Look: <image>?"},
        {"image": "y.png", "question": "Q" * 8001},
        {"image": "y.png", "question": "Same?"},
        {"image": "y.png", "question": "Same?", "risk_type": "insults"},
        *({"image": f"r{number}.png", "answer": "Always this."} for number in range(6)),
    ]
    code, report, _, _ = run("inspect", "custom", "--root", table(folder, rows), "--split", "train")
    suspicious = {(row["source"], row["reason"]) for row in report["suspicious"]}
    for source, reason in (
        ("labels.csv:2", "tiny.png is 20 x 20 pixels, less than 48 on a side"),
        ("labels.csv:3", "long.png is 700 x 60 pixels, more than 10 to 1"),
        ("labels.csv:4", "bmp.jpg is named .jpg and is a BMP"),
        ("labels.csv:5", "question contains '<image>', which a model's template uses"),
        ("labels.csv:6", "question has 8,001 characters, more than 8,000"),
        ("labels.csv:8", "is insults:2, and the same exchange in labels.csv:7 is privacy:2"),
        ("all rows", "6 of 13 risky rows have the answer 'Always this.': a model would learn it by heart"),
    ):
        assert (source, reason) in suspicious
    assert code == 0 and len(suspicious) == 7


def test_the_same_image_and_one_that_looks_the_same_are_found(run, tmp_path):
    folder = tmp_path / "d"
    one = scene(folder / "one.png", 100)
    (folder / "copy.png").write_bytes(one.read_bytes())
    Image.open(one).resize((120, 90)).save(folder / "small.jpg", quality=70)
    rows = [{"image": name} for name in ("one.png", "copy.png", "small.jpg", "other.png", "third.png")]
    _, report, page, _ = run("inspect", "custom", "--root", table(folder, rows), "--split", "train")
    assert [[scan["name"] for scan in group] for group in report["duplicates"]] == [["one.png", "copy.png"]]
    (pair,) = report["near_duplicates"]
    assert "small.jpg" in pair["other"] and pair["bits"] <= NEAR_BITS and "bits differ" in page


def test_near_duplicates_are_the_pairs_that_a_full_comparison_finds():
    import random

    rng = random.Random(0)
    hashes = [rng.getrandbits(64) for _ in range(60)]
    hashes += [value ^ sum(1 << n for n in rng.sample(range(64), rng.randint(1, NEAR_BITS + 2))) for value in hashes]
    scans = [
        ImageScan(f"f:{n}", f"{n}", fingerprint=Fingerprint(f"{n}", "", 1, f"{n}", value))
        for n, value in enumerate(hashes)
    ]
    full = {(a, b) for a in range(120) for b in range(a + 1, 120) if (hashes[a] ^ hashes[b]).bit_count() <= NEAR_BITS}
    assert {(int(a.name), int(b.name)) for a, b, _ in near_duplicates(scans)} == full and full


@pytest.fixture
def mixture(tmp_path):
    """A stage's YAML on a table of its own, with a validation and a test table beside it."""
    folder = tmp_path / "d"
    for split, start in (("train", 0), ("validation", 100), ("test", 200)):
        for number in range(6):
            scene(folder / f"{split}{number}.png", start + number)
        rows = [
            {
                "image": f"{split}{n}.png",
                "split": split,
                "risk_type": "clean" if n % 2 else "privacy",
                "risk_level": 0 if n % 2 else 2,
            }
            for n in range(6)
        ]
        table(folder, rows, f"{split}.csv")
    path = tmp_path / "stage.yaml"
    path.write_text(
        f"data: {{root: {folder}, train: [{{recipe: custom}}], validation: [{{recipe: custom, split: validation}}]}}\n"
    )
    return path, folder


def test_check_prints_the_composition_and_finds_no_leak_where_there_is_none(run, mixture):
    code, report, _, printed = run("check", mixture[0])
    assert code == 0 and report["mixture"][0]["labels"] == {"clean:0": 3, "privacy:2": 3}
    assert "6 rows to train on" in printed and "0 broken, 0 leaking" in printed
    assert report["Images held out"] == "12", "those of validation and test"


def test_check_finds_images_of_validation_under_another_name_and_saved_again(run, mixture):
    path, folder = mixture
    (folder / "train0.png").write_bytes((folder / "validation3.png").read_bytes())
    Image.open(folder / "validation4.png").resize((120, 90)).save(folder / "train1.png")
    code, report, page, printed = run("check", path)
    assert code == 1 and "2 leaking" in printed and "validation3.png" in page
    assert [(leak["image"], leak["held_out"], leak["bits"] > 0) for leak in report["leaks"]] in (
        [("train0.png", "validation3.png", False), ("train1.png", "validation4.png", False)],
        [("train0.png", "validation3.png", False), ("train1.png", "validation4.png", True)],
    )


def test_split_writes_a_file_by_which_others_hold_the_images_out(run, mixture, tmp_path):
    path, folder = mixture
    file = tmp_path / "held_out.csv"
    assert main(["split", "custom", "--root", str(folder), "--split", "test", "--output", str(file)]) == 0
    assert len(file.read_text().splitlines()) == 7
    (folder / "train5.png").write_bytes((folder / "test2.png").read_bytes())
    path.write_text(path.read_text().replace("validation:", f"held_out: [{file}], validation:"))
    code, report, _, _ = run("check", path)
    assert code == 1 and [(leak["image"], leak["held_out"], leak["split"]) for leak in report["leaks"]] == [
        ("train5.png", "test2.png", "custom test")
    ]


def test_texts_of_the_data_never_become_structure(run, tmp_path):
    text = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    rows = [{"image": "a.png", "question": text, "answer": "</figcaption><b>bold"}]
    _, _, page, _ = run("inspect", "custom", "--root", table(tmp_path / "d", rows), "--split", "train")
    assert (
        "<script>alert" not in page
        and "onerror=alert(1)>" not in page
        and "&lt;script&gt;" in page
        and "<b>bold" not in page
    )
    assert "default-src 'none'" in page and not re.search(r'(src|href)="(?!data:)', page)


def test_tokens_are_counted_where_a_tokenizer_is_given(run, tmp_path, bases):
    folder = table(tmp_path / "d", [{"image": "a.png", "question": "what is it"}, {"image": "b.png"}])
    _, report, _, _ = run("inspect", "custom", "--root", folder, "--split", "train", "--tokenizer", bases["llava"])
    assert report["lengths"]["unit"] == "tokens" and report["lengths"]["question"][3] >= 3
    with pytest.raises(SystemExit):
        run("inspect", "custom", "--root", folder, "--split", "train", "--tokenizer", tmp_path / "none.json")


def test_list_names_every_recipe_with_its_licence(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert "xstest" in printed and "CC BY 4.0" in printed and "evaluation" in printed


def test_an_error_is_one_line_and_code_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["inspect", "custmo", "--root", str(tmp_path)])
    assert end.value.code == 2 and "did you mean 'custom'" in capsys.readouterr().err


def test_the_page_shows_the_first_findings_and_counts_all(tmp_path):
    findings = [gallery.Findings("Broken", [(f"f:{n}", "x") for n in range(250)])]
    page = gallery.page("T", [], [], findings)
    assert page.count("<tr>") == 200 and "250" in page and "The first 200" in page


def test_a_llava_json_is_inspected_row_by_row(run, tmp_path):
    folder = tmp_path / "d"
    scene(folder / "a.png", 1)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A."}]
    rows = [{"id": 1, "image": "a.png", "conversations": turns}, {"id": 2, "image": "b.png", "conversations": turns}]
    write_json(folder / "annotations.json", rows)
    code, report, _, _ = run("inspect", "llava_instruct", "--root", folder)
    assert code == 1 and report["rows"] == 1 and report["broken"][0]["source"] == "annotations.json:2"
