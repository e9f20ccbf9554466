"""`inspect` and `check` on difficult data: values of the wrong type, many similar images, names that are not UTF-8."""

import base64
import hashlib
import io
import os
import re
import sys

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
from PIL import Image

from data_recipes.__main__ import default_splits, main
from data_recipes.core.held_out import Fingerprint
from data_recipes.core.rows import Rows
from data_recipes.inspection.image_scan import ImageScan, near_duplicates
from data_recipes.inspection.survey import survey_rows
from safety_modules.reporting.gallery import thumbnail
from safety_modules.sample import Sample, Turn

WRONG = {
    "m.yaml: data.train.0.weight: 'two' must be a number": {"train": [{**TRAIN, "weight": "two"}]},
    "m.yaml: data.train.0.limit: 'five' must be a whole number": {"train": [{**TRAIN, "limit": "five"}]},
    "m.yaml: data.train.0.labels: ['a'] must be a mapping": {"train": [{**TRAIN, "labels": ["a"]}]},
    "m.yaml: data.train: 'custom' must be a list, such as [{recipe: custom}]": {"train": "custom"},
    "m.yaml: data.held_out: 'a.csv' must be a list, such as [a.csv]": {"train": [TRAIN], "held_out": "a.csv"},
    "m.yaml: data.balance: 7.0 is a fraction and must be in 0..1": {"train": [TRAIN], "balance": 7},
    "m.yaml: data.clean_fraction: 30.0 is a fraction and must be in (0, 1)": {"train": [TRAIN], "clean_fraction": 30},
    "m.yaml: data.max_repeats: 0 must be at least 1": {"train": [TRAIN], "max_repeats": 0},
    "m.yaml: data.max_repeats: True must be a whole number": {"train": [TRAIN], "max_repeats": True},
    "m.yaml: data.packing: 'yes' must be true or false": {"train": [TRAIN], "packing": "yes"},
}


@pytest.mark.parametrize("message", WRONG)
def test_values_of_the_wrong_type(tmp_path, message, capsys):
    fails(tmp_path, WRONG[message], message, capsys)


def test_the_rest_of_the_stage_is_read(tmp_path, capsys):
    fails(tmp_path, {"train": [TRAIN]}, "trainer 5 must be a mapping", capsys, trainer=5)
    fails(tmp_path, {"train": [TRAIN]}, "cannot be read as a taxonomy", capsys, taxonomy=str(tmp_path / "none.yaml"))


def test_the_taxonomy_of_a_stage(tmp_path):
    rows = in_order(tmp_path)
    rows[0].update(risk_type="gambling", risk_level=2)
    table(tmp_path, *rows)
    data = {"root": str(tmp_path), "train": [TRAIN]}
    assert (
        check(tmp_path / "m.yaml", data, tmp_path / "out", taxonomy=str(gambling(tmp_path)))[1]["labels"]["gambling:2"]
        == 1
    )


def test_broken_rows_of_a_mixture_are_counted_and_named(tmp_path, capsys):
    rows = in_order(tmp_path)
    rows[1]["risk_level"] = 7
    (tmp_path / "6.png").write_bytes(b"no image")  # of validation
    table(tmp_path, *rows)
    data = {"root": str(tmp_path), "train": [TRAIN], "validation": [VALIDATION]}
    code, report, last = check(tmp_path / "m.yaml", data, tmp_path / "out", capsys=capsys)
    assert code == 1 and last.startswith("not in order: ") and report["rows"] == 3
    broken = reasons(report, "broken")
    assert "risk_level 7" in broken["custom train labels.csv:3"] and "6.png" in broken["custom validation labels.csv:8"]


def test_the_test_split_of_own_data_is_held_out(tmp_path):
    draw(9).save(tmp_path / "other.jpg")
    table(tmp_path, *in_order(tmp_path), row("other.jpg", 20))
    code, report, _ = check(tmp_path / "m.yaml", {"root": str(tmp_path), "train": [TRAIN]}, tmp_path / "out")
    (leak,) = report["leaks"]
    assert code == 1 and (leak["image"], leak["held_out"], leak["split"]) == ("other.jpg", "9.png", "custom test")


def test_the_last_line_says_that_all_is_in_order(tmp_path, capsys):
    table(tmp_path, *in_order(tmp_path))
    assert inspect(tmp_path, tmp_path / "out", capsys=capsys)[2].startswith(
        "in order: 0 broken, 0 leaking, 0 suspicious"
    )


def test_every_row_of_a_broken_image_is_named(tmp_path):
    save(tmp_path, 0)
    (tmp_path / "bad.png").write_bytes(b"no image")
    table(tmp_path, row("0.png"), row("bad.png", 1), row("bad.png", 2))
    broken = reasons(inspect(tmp_path, tmp_path / "out")[1], "broken")
    assert list(broken) == ["labels.csv:3", "labels.csv:4"]
    assert broken["labels.csv:3"].count("bad.png") == 1 and "0x" not in broken["labels.csv:3"]


def test_bad_rows_may_stop_the_inspection(tmp_path, capsys):
    rows = in_order(tmp_path)
    rows[1]["risk_level"] = 7
    table(tmp_path, *rows)
    with pytest.raises(SystemExit) as stop:
        inspect(tmp_path, tmp_path / "out", "--bad-rows", "error")
    assert stop.value.code == 2 and "labels.csv:3" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--stream", "--workers"])
def test_numbers_are_from_1(tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        main(["inspect", "custom", "--root", str(tmp_path), option, "0"])
    assert "'0' must be a whole number from 1" in capsys.readouterr().err


def test_default_splits_leave_no_image_out():
    assert default_splits("unsafebench", join=True) == ["train+validation", "test"]
    assert default_splits("unsafebench") == ["train", "validation", "test"]
    assert default_splits("jailbreakv") == ["all"] and default_splits("rtvlm") == ["train", "test"]


def test_many_images_that_look_the_same_are_few_pairs():
    def scan(number, phash):
        return ImageScan("source", str(number), fingerprint=Fingerprint(str(number), "", 1, str(number), phash))

    assert len(near_duplicates([scan(number, 1 << 63) for number in range(3000)])) == 2999
    pairs = near_duplicates([scan(0, 0), scan(1, 0b1111), scan(2, 0b11), scan(3, 0b11111 << 20), scan(4, 0)])
    assert [(one.name, other.name, bits) for one, other, bits in pairs] == [
        ("0", "1", 4),
        ("0", "2", 2),
        ("0", "4", 0),
        ("1", "2", 2),
    ]


def test_an_image_of_a_phone_is_a_jpeg(tmp_path):
    draw(0).save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[draw(1)])
    table(tmp_path, row("phone.jpg"))
    assert not inspect(tmp_path, tmp_path / "out")[1]["suspicious"]


def test_the_same_last_question_after_other_turns_may_have_another_label(tmp_path):
    def sample(first, level):
        turns = tuple(Turn(who, text) for who, text in zip(("user", "assistant") * 2, (first, "B.", "And?", "C.")))
        return Sample((), turns, "illegal", level, f"rows:{level}")

    suspicious = survey_rows(Rows.of([sample("A?", 1), sample("D?", 2)])).suspicious
    assert [source for source, _ in suspicious] == ["all rows"]  # one answer, but two exchanges
    suspicious = survey_rows(Rows.of([sample("A?", 1), sample("A?", 2)])).suspicious
    assert [source for source, _ in suspicious] == ["rows:2", "all rows"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_not_utf_8(tmp_path, capsys):
    data = tmp_path / "data"
    save(data / "clean", 0)
    save(data / "illegal", 1)
    bad = os.fsencode(data) + b"/illegal/\xff.png"
    os.rename(data / "illegal" / "1.png", bad)
    assert inspect(data, tmp_path / "out")[0] == 0
    with open(bad, "wb") as file:
        file.write(b"no image")
    code, report, _ = inspect(data, tmp_path / "out", capsys=capsys)
    assert code == 1 and "\udcff.png" in report["broken"][0]["reason"]


def test_the_policy_of_the_page_names_its_one_script(tmp_path):
    table(tmp_path, *in_order(tmp_path))
    inspect(tmp_path, tmp_path / "out")
    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "unsafe-inline" not in page
    for name in ("script", "style"):
        text = re.search(rf"<{name}>(.*?)</{name}>", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in page
    cells = re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", page.split("<nav")[0])
    assert cells[-4:] == ["all", "6", "6", "12"]


def test_small_images_are_not_enlarged(tmp_path):
    draw(0, (50, 40)).save(tmp_path / "0.png")
    data = base64.b64decode(thumbnail([tmp_path / "missing.png", tmp_path / "0.png"]).split(",")[1])
    assert Image.open(io.BytesIO(data)).size == (50, 40)


def test_workers_open_images_in_processes(tmp_path):
    table(tmp_path, *in_order(tmp_path))
    one, two = (
        run("inspect", "custom", "--root", tmp_path, "--workers", n, "--output", tmp_path / "out")[1] for n in (1, 2)
    )
    assert one == two
