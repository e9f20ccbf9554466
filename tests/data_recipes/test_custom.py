"""Custom: rows of the user's own data, good and bad."""

import json
import os
import re

import pytest
from helpers.own_tables import HEADER, TAXONOMY, fault, parquet, rows, touch, write

from data_recipes import custom
from data_recipes.core.reading import RowReader
from safety_modules.sample import DataError
from safety_modules.taxonomy import Taxonomy


def test_csv_row_becomes_a_sample(tmp_path):
    touch(tmp_path, "img/a.png", "b.png")
    write(tmp_path, HEADER, "img/a.png | b.png, Q? , A. , privacy ,3")
    (sample,) = rows(tmp_path)
    assert sample.images == (tmp_path / "img/a.png", tmp_path / "b.png")
    assert (sample.question, sample.answer, sample.risk_type, sample.risk_level) == ("Q?", "A.", "privacy", 3)
    assert sample.source == "labels.csv:2"
    assert rows(tmp_path / "labels.csv") == [sample]


def test_jsonl_takes_a_list_of_images_and_null(tmp_path):
    touch(tmp_path, "a|b.png", "c.png")
    lines = [
        {"image": ["a|b.png", "c.png"], "question": "Q\u2028?", "answer": "A", "risk_type": "privacy", "risk_level": 2},
        {"image": None, "question": "T?", "answer": "A", "risk_type": "clean"},
        {"image": [], "question": "T?", "answer": "A", "risk_type": "clean", "risk_level": None},
    ]
    write(tmp_path, *(json.dumps(line, ensure_ascii=False) for line in lines), "", name="labels.jsonl")
    one, two, three = rows(tmp_path)
    assert one.images == (tmp_path / "a|b.png", tmp_path / "c.png") and one.question == "Q\u2028?"
    assert two.images == three.images == () and two.risk_level == three.risk_level == 0
    assert [sample.source for sample in (one, two, three)] == [f"labels.jsonl:{i}" for i in (1, 2, 3)]


def test_parquet_reads_like_jsonl(tmp_path):
    touch(tmp_path, "a.png")
    columns = {
        "image": [["a.png"], None],
        "question": [None, "T?"],
        "risk_type": ["privacy", "clean"],
        "risk_level": [3.0, float("nan")],
    }
    one, two = rows(parquet(tmp_path, columns))
    assert (one.images, one.risk_level, one.source) == ((tmp_path / "a.png",), 3, "labels.parquet:1")
    assert (two.images, two.question, two.risk_level) == ((), "T?", 0)


def test_byte_order_mark_crlf_blank_lines_and_extra_columns(tmp_path):
    touch(tmp_path, "a.png")
    text = "\ufeffimage, note,risk_type,,\r\n\r\na.png,x,clean,,,\r\n,,,\r\na.png,y,nonsense,,\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode())
    assert "labels.csv:5: unknown risk_type 'nonsense'" in fault(tmp_path)
    (tmp_path / "labels.csv").write_bytes(text.replace("nonsense", "clean").encode())
    assert [sample.source for sample in rows(tmp_path)] == ["labels.csv:3", "labels.csv:5"]


def test_row_with_quoted_line_breaks_has_the_line_it_starts_on(tmp_path):
    touch(tmp_path, "a.png")
    write(tmp_path, HEADER, 'a.png,"one', "", 'two, ""three""",A,clean,0', "a.png,Q,A,clean,0")
    one, two = rows(tmp_path)
    assert one.question == 'one\n\ntwo, "three"'
    assert (one.source, two.source) == ("labels.csv:2", "labels.csv:5")


@pytest.mark.parametrize("given, level", [("", 2), ("3", 3), (" 3 ", 3), ("2.0", 2), ("careful", 1), (" refuse", 3)])
def test_level_is_a_number_a_name_or_the_default_of_the_type(tmp_path, given, level):
    touch(tmp_path, "a.png")
    write(tmp_path, HEADER, f"a.png,,,privacy,{given}")
    assert rows(tmp_path)[0].risk_level == level


def test_clean_without_a_level_is_0(tmp_path):
    touch(tmp_path, "a.png")
    assert rows(write(tmp_path, "image,risk_type", "a.png,clean"))[0].risk_level == 0


def test_missing_texts_are_the_taxonomys_own_by_label(tmp_path):
    own = TAXONOMY.to_dict()
    own["questions"] = ["What?", "Who?"]
    for level, texts in ((0, ["Fine.", "Good."]), (1, ["Mind {hint}.", "Beware of {hint}."])):
        own["levels"][level]["answers"] = texts
    taxonomy = Taxonomy.from_dict(own)
    names = [f"{i}.png" for i in range(40)]
    touch(tmp_path, *names)
    write(
        tmp_path,
        HEADER,
        *(f"{name},,,{kind},{level}" for name in names for kind, level in (("clean", 0), ("privacy", 1))),
    )
    read = rows(tmp_path, taxonomy=taxonomy)
    assert {sample.question for sample in read} == {"What?", "Who?"}
    assert {sample.answer for sample in read if sample.risk_level} == set(taxonomy.answers("privacy", 1))
    assert {sample.answer for sample in read if not sample.risk_level} == {"Fine.", "Good."}


def test_missing_texts_are_composed_where_the_taxonomy_has_none(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    touch(tmp_path, *names)
    read = rows(write(tmp_path, HEADER, *(f"{name},,,privacy,2" for name in names)))
    assert len({sample.question for sample in read}) > 12
    assert len({sample.answer for sample in read}) > 30
    assert all("private data of a person" in sample.answer for sample in read)


def test_filled_texts_depend_on_the_images_and_question_alone(tmp_path):
    texts = []
    for place, order in (("one", 1), ("two", -1)):
        names = [f"{i}.png" for i in range(20)]
        touch(tmp_path / place, *names)
        write(tmp_path / place, HEADER, *(f"{name},,,privacy,2" for name in names[::order]))
        texts.append({sample.images[0].name: sample.turns for sample in rows(tmp_path / place)})
    assert texts[0] == texts[1]
    assert texts[0]["0.png"][0].text == "What does the image show?", (
        "the same row would be filled otherwise than it was before"
    )


def test_a_harmless_request_has_no_composed_answer(tmp_path):
    clean, risky = rows(write(tmp_path, HEADER, ",How are you?,,clean,0", ",How do I forge it?,,illegal,3"))
    assert clean.answer == "" and "request" in risky.answer and "image" not in risky.answer
    reader = RowReader(TAXONOMY, answers=True)
    with pytest.raises(DataError, match=r"labels.csv:2: has no answer to train a language model on; write one, or"):
        custom.samples(tmp_path, "all", reader)


@pytest.mark.parametrize(
    "row, reason",
    [
        ("a.png,,,privcy,", "unknown risk_type 'privcy'; did you mean 'privacy'"),
        ("a.png,,,,", "risk_type is empty; valid names: politics"),
        ("a.png,,,privacy,high", "risk_level 'high' must be 0..3 or a level's name; valid names: safe"),
        ("a.png,,,privacy,carefull", "did you mean 'careful'"),
        ("a.png,,,privacy,2.5", "risk_level 2.5 of 'privacy' must be a whole number from 0 to 3"),
        ("a.png,,,privacy,9", "risk_level 9 of 'privacy'"),
        ("a.png,,,privacy,-1", "risk_level -1 of 'privacy'"),
        ("a.png,,,privacy,nan", "risk_level nan of 'privacy'"),
        ("a.png,,,privacy,inf", "risk_level inf of 'privacy'"),
        ("a.png,,,privacy,0", "set it to 1..3, or label it 'clean'"),
        ("a.png,,,clean,1", "name its risk_type"),
        (",,A,clean,", "has neither image nor question"),
        ("b.png,,,clean,", "image 'b.png': no such file"),
        ("img,,,clean,", "image 'img': no such file"),
        ("a.png|b.png,,,clean,", "image 'b.png': no such file"),
        ("a.png|,,,clean,", "none of them empty"),
        ("../own/../x.png,,,clean,", "image '../own/../x.png' leaves"),
        ("../own2/x.png,,,clean,", "leaves"),
        ("img/out.png,,,clean,", "leaves"),
        ("img/far/x.png,,,clean,", "leaves"),
        ("img/loop.png,,,clean,", "no such file"),
        ("/etc/hostname,,,clean,", "is an absolute path"),
        (r"C:\a.png,,,clean,", "is an absolute path"),
        (f"{'x' * 5000}.png,,,clean,", "no such file"),
        ("a.png,,,clean,0,more", "has 6 cells, the header 5"),
        ("a.png,what, is this?,A,clean,0", "has 6 cells, the header 5"),
        ("a.png,clean", "has 2 cells, the header 5"),
    ],
)
def test_bad_row_is_named_with_its_reason(tmp_path, row, reason):
    own = tmp_path / "own"
    touch(own, "a.png", "img/a.png")
    touch(tmp_path, "x.png", "own2/x.png")
    os.symlink(tmp_path / "x.png", own / "img" / "out.png")
    os.symlink(tmp_path, own / "img" / "far")
    os.symlink("loop.png", own / "img" / "loop.png")
    message = fault(write(own, HEADER, "a.png,Q,A,clean,0", row))
    assert re.search(rf"\nlabels.csv:3: .*{re.escape(reason)}", message)
    assert max(map(len, message.splitlines())) < 400


@pytest.mark.parametrize(
    "line, reason",
    [
        ('{"image": "a.png", "risk_type": "clean"', "is not JSON (Expecting ',' delimiter at column"),
        ('["a.png", "clean"]', "is ['a.png', 'clean'], not an object"),
        ('"a.png"', "is 'a.png', not an object"),
        ('{"image": 5, "risk_type": "clean"}', "image 5 must be a path"),
        ('{"image": {"bytes": "", "path": "a.png"}, "risk_type": "clean"}', "must be a path"),
        ('{"image": ["a.png", null], "risk_type": "clean"}', "must be a path"),
        ('{"image": "a\\u0000.png", "risk_type": "clean"}', "no such file"),
        ('{"image": "a.png", "risk_type": 3}', "risk_type 3 must be a text"),
        ('{"image": "a.png", "risk_type": "clean", "question": ["Q"]}', "question ['Q'] must be a text"),
        ('{"image": "a.png", "risk_type": "clean", "answer": false}', "answer False must be a text"),
        ('{"image": "a.png", "risk_type": "clean", "question": "\\ud800"}', "half of a surrogate pair"),
        ('{"image": "a.png", "risk_type": "privacy", "risk_level": true}', "risk_level True of 'privacy'"),
        ('{"image": "a.png", "risk_type": "privacy", "risk_level": [2]}', "risk_level [2] of 'privacy'"),
        ('{"image": "a.png", "question": "Q"}', "lacks 'risk_type'"),
        ('{"img": "a.png", "question": "Q", "risk_type": "clean"}', "lacks 'image'"),
    ],
)
def test_bad_json_row_is_named_with_its_reason(tmp_path, line, reason):
    touch(tmp_path, "a.png")
    write(tmp_path, '{"image": "a.png", "risk_type": "clean"}', "", line, name="labels.jsonl")
    assert re.search(rf"\nlabels.jsonl:3: .*{re.escape(reason)}", fault(tmp_path))


def test_file_without_any_json_object_names_its_lines(tmp_path):
    assert "2 of 2 rows cannot be used\nlabels.jsonl:1: is not JSON" in fault(
        write(tmp_path, "[", "]", name="labels.jsonl")
    )


def test_five_bad_rows_are_shown_and_all_are_counted(tmp_path):
    touch(tmp_path, "a.png")
    good, bad = "a.png,,,clean,", "a.png,,,none,"
    message = fault(write(tmp_path, HEADER, good, *[bad] * 42)).splitlines()
    assert message[0] == f"{tmp_path / 'labels.csv'}: 42 of 43 rows cannot be used"
    assert [line.split(": ")[0] for line in message[1:-1]] == [f"labels.csv:{i}" for i in range(3, 8)]
    assert message[-1] == "and 37 more"
    assert "more" not in fault(write(tmp_path, HEADER, *[bad] * 5))


def test_bad_rows_of_other_splits_are_reported_too(tmp_path):
    write(tmp_path, "image,question,risk_type,split", ",Q,clean,train", ",Q,nonsense,test")
    assert "labels.csv:3" in fault(tmp_path, "train")
