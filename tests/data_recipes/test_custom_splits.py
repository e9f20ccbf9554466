"""Custom: splits by column, by table and by image."""

import os

import pytest
from helpers.own_tables import HEADER, fault, rows, touch, write


def test_column_split_decides(tmp_path):
    write(tmp_path, "image,question,risk_type,split", ",1,clean,train", ",2,clean,test", ",3,clean,train")
    assert [sample.question for sample in rows(tmp_path, "train")] == ["1", "3"]
    assert [sample.question for sample in rows(tmp_path, "test")] == ["2"]
    assert len(rows(tmp_path, "all")) == 3
    assert "unknown split 'tset'; did you mean 'test'? valid names: test, train, all" in fault(tmp_path, "tset")


@pytest.mark.parametrize("cell", ["", "all"])
def test_empty_or_reserved_cell_in_a_column_split_is_an_error(tmp_path, cell):
    write(tmp_path, "image,question,risk_type,split", ",1,clean,train", f",2,clean,{cell}")
    assert f"labels.csv:3: split {cell!r} must be the name of a split" in fault(tmp_path, "train")


def test_column_split_must_agree_with_the_tables_name(tmp_path):
    write(tmp_path, "image,question,risk_type,split", ",1,clean,train", ",2,clean,test", name="train.csv")
    assert "train.csv:3: split 'test' is in a table named 'train'" in fault(tmp_path, "train")


def test_rows_are_split_by_image(tmp_path):
    names = [f"{i}.png" for i in range(300)]
    touch(tmp_path, *names)
    write(tmp_path, HEADER, *(f"{name},{question},A,clean,0" for question in "XY" for name in names))
    train, validation = rows(tmp_path, "train"), rows(tmp_path, "validation")
    assert len(train) + len(validation) == len(rows(tmp_path, "all")) == 600
    assert not {sample.images for sample in train} & {sample.images for sample in validation}
    assert 30 < len(validation) < 90
    assert "unknown split 'test'" in fault(tmp_path, "test")
    assert "did you mean 'validation'" in fault(tmp_path, "validaton")


def test_split_does_not_depend_on_order_or_on_other_rows(tmp_path):
    names = [f"{i}.png" for i in range(100)]
    touch(tmp_path, *names)
    held = []
    for some in (names, names[::-1], names[:80]):
        write(tmp_path, HEADER, *(f"{name},Q,A,clean,0" for name in some))
        held.append({sample.images[0].name for sample in rows(tmp_path, "validation")})
    assert sorted(held[0])[:3] == ["12.png", "21.png", "28.png"], "the same image would be in another split than before"
    assert held[0] == held[1] and held[2] == held[0] & set(names[:80])


def test_rows_joined_by_an_image_or_a_link_stay_together(tmp_path):
    """A chain a|b, b|c, ... is one group although its first and last row share nothing; links count as their image."""
    names = [f"{i}.png" for i in range(40)]
    touch(tmp_path, *names, "lone.png")
    os.symlink("0.png", tmp_path / "link.png")
    chain = [f"{one}|{two}" for one, two in zip(names, names[1:])]
    write(tmp_path, HEADER, *(f"{cell},Q,A,clean,0" for cell in ["link.png", *chain, "lone.png"]))
    parts = [rows(tmp_path, split) for split in ("train", "validation")]
    assert sorted(map(len, parts)) == [1, 40]
    assert [part[0].images[0].name for part in parts if len(part) == 1] == ["lone.png"]


@pytest.mark.parametrize("count", range(2, 12))
def test_neither_split_is_empty_from_two_images_on(tmp_path, count):
    write(tmp_path, HEADER, *(f",Q{i},A,clean,0" for i in range(count)))
    assert rows(tmp_path, "train") and rows(tmp_path, "validation")


def test_a_single_row_is_train(tmp_path):
    write(tmp_path, HEADER, ",Q,A,clean,0")
    assert len(rows(tmp_path, "train")) == 1 and rows(tmp_path, "validation") == []
