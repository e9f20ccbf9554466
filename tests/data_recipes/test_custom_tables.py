"""Custom: whole tables, and which table or folders of a root are read."""

import logging
import os
import re

import pytest
from helpers.own_tables import TAXONOMY, fault, parquet, rows, touch, write

import data_recipes
from safety_modules.sample import DataError


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("labels.csv", b"", "has no rows"),
        ("labels.csv", b"image,risk_type\n", "has no rows"),
        ("labels.jsonl", b"\n\n", "has no rows"),
        ("labels.csv", b"image,image,risk_type\na,b,clean\n", "has two columns 'image'"),
        ("labels.csv", b"note,image,note,risk_type\na,b,c,clean\n", "has two columns 'note'"),
        ("labels.csv", b"img,question,risk_type\na,b,clean\n", "lacks the column 'image'.*rename 'img' to 'image'"),
        (
            "labels.csv",
            b"Image,type\na,clean\n",
            "lacks the column 'image' and 'risk_type'.*'Image' to 'image'.*'type' to 'risk_type'",
        ),
        (
            "labels.csv",
            b"a.png,privacy\nb.png,clean\n",
            "its columns are 'a.png', 'privacy'; needed are image, risk_type, optional question",
        ),
        ("labels.csv", b"image;risk_type\na.png;clean\n", "separate the columns by commas"),
        (
            "labels.csv",
            b'image,risk_type\na.png,clean\n"a.png,clean\na.png,clean\n',
            "labels.csv:3: is not CSV .*close each quoted text",
        ),
        ("labels.csv", b'image,risk_type\n"a"b,clean\n', "labels.csv:2: is not CSV"),
        ("labels.csv", b"image,risk_type\na.png,clean\n\xe4.png,clean\n", "labels.csv:3: is not UTF-8"),
        ("labels.csv", "image,risk_type\na,clean\n".encode("utf-16"), "labels.csv:1: is not UTF-8"),
        (
            "labels.jsonl",
            b'{"img": "a.png", "risk_type": "clean"}\n',
            "lacks the column 'image'.*rename 'img' to 'image'",
        ),
    ],
)
def test_bad_table_is_named_with_its_reason(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    message = fault(tmp_path)
    assert re.search(reason, message) and name in message and "\n" not in message


def test_bad_parquet_is_named_with_its_reason(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 and more")
    assert "labels.parquet: cannot be read as Parquet" in fault(tmp_path)
    assert "rename 'img' to 'image'" in fault(parquet(tmp_path, {"img": ["a.png"], "risk_type": ["clean"]}))
    assert "has two columns 'image'" in fault(
        parquet(tmp_path, ([["a"], ["b"], ["c"]], ["image", "image", "risk_type"]))
    )
    assert "labels.parquet:1: image {'bytes'" in fault(
        parquet(tmp_path, {"image": [{"bytes": b""}], "risk_type": ["clean"]})
    )


def test_misspelt_optional_column_is_logged_and_others_are_not(tmp_path, caplog):
    write(tmp_path, "image,question,questions,anwser,id,risk_type", ",Q,Q,A,1,clean")
    with caplog.at_level(logging.WARNING):
        rows(tmp_path)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "column 'anwser' is ignored; did you mean 'answer'?"
    ]


@pytest.mark.parametrize("name", ["labels.json", "labels.tsv", "labels.xlsx", "labels"])
def test_other_file_as_root_is_an_error(tmp_path, name):
    touch(tmp_path, name)
    assert "a table is one of .csv, .jsonl, .parquet" in fault(tmp_path / name)


def test_missing_root_is_an_error(tmp_path):
    assert "no such file or folder" in fault(tmp_path / "none")


def test_table_named_like_the_split_is_the_whole_split(tmp_path):
    for split in ("train", "validation", "holdout"):
        write(tmp_path, "image,question,risk_type", *[f",{split} {i},clean" for i in range(20)], name=f"{split}.csv")
    for split in ("train", "validation", "holdout"):
        assert [sample.question for sample in rows(tmp_path, split)] == [f"{split} {i}" for i in range(20)]
    assert len(rows(tmp_path / "train.csv", "train")) == len(rows(tmp_path / "train.csv", "all")) == 20
    assert "no table of split 'test'; valid names: train, validation" in fault(tmp_path, "test")
    assert "unknown split 'validation'; valid names: train, all" in fault(tmp_path / "train.csv", "validation")


def test_test_table_may_stand_beside_labels(tmp_path):
    write(tmp_path, "image,question,risk_type", *[f",{i},clean" for i in range(20)])
    write(tmp_path, "image,question,risk_type", ",T,clean", name="test.csv")
    assert [sample.source for sample in rows(tmp_path, "test")] == ["test.csv:2"]
    assert len(rows(tmp_path, "train")) + len(rows(tmp_path, "validation")) == 20


@pytest.mark.parametrize(
    "names", [("labels.csv", "labels.jsonl"), ("train.csv", "train.jsonl"), ("labels.csv", "train.csv")]
)
def test_two_tables_for_a_split_are_named(tmp_path, names):
    touch(tmp_path, *names)
    message = fault(tmp_path, "train")
    assert all(name in message for name in names) and "keep one" in message


def test_category_folders(tmp_path):
    touch(
        tmp_path,
        "privacy/b.png",
        "privacy/a|b.jpg",
        "clean/c.webp",
        "politics/odd.name",
        ".git/x",
        "privacy/.DS_Store",
        "readme.md",
    )
    read = rows(tmp_path)
    assert [sample.source for sample in read] == [
        "clean/c.webp",
        "politics/odd.name",
        "privacy/a|b.jpg",
        "privacy/b.png",
    ]
    assert [(sample.risk_type, sample.risk_level) for sample in read] == [
        ("clean", 0),
        ("politics", 3),
        ("privacy", 2),
        ("privacy", 2),
    ]
    assert read[0].images == (tmp_path / "clean" / "c.webp",)
    assert read[0].question and read[0].answer


def test_bad_category_folders(tmp_path):
    touch(tmp_path, "privcy/a.png", "privacy/deep/a.png", "clean/a.png")
    os.symlink("/etc/hostname", tmp_path / "clean" / "b.png")
    message = fault(tmp_path)
    assert "clean/b.png: image 'clean/b.png' leaves" in message
    assert "privacy/deep: is a folder; put its images into privacy/ itself" in message
    assert "privcy: is not a category; did you mean 'privacy'" in message


def test_folder_of_neither_layout_says_what_it_holds(tmp_path):
    touch(tmp_path, "images/a.png", "annotations.csv")
    message = fault(tmp_path)
    assert "it holds 'annotations.csv', 'images'" in message and "categories: politics" in message


def test_folder_without_images_is_an_empty_split(tmp_path):
    (tmp_path / "clean").mkdir()
    with pytest.raises(DataError, match="recipe 'custom' has no rows in split 'train'"):
        data_recipes.load("custom", tmp_path, "train", TAXONOMY)
