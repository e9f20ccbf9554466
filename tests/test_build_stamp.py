"""Build stamps: another origin is refused, and a folder's digest follows its files."""

import pytest

from safety_modules.build_stamp import check_stamp, digest, read_stamp
from safety_modules.errors import UserError


def test_an_output_of_another_origin_is_refused(tmp_path):
    stamp = tmp_path / "deep" / "stamp.json"
    assert read_stamp(stamp) is None
    check_stamp(stamp, {"model": "a", "seed": 1}, tmp_path, "scores")
    check_stamp(stamp, {"seed": 1, "model": "a"}, tmp_path, "scores")
    with pytest.raises(UserError, match=r"holds scores of another run \(seed, split differ\)"):
        check_stamp(stamp, {"model": "a", "seed": 2, "split": "test"}, tmp_path, "scores")
    assert read_stamp(stamp) == {"model": "a", "seed": 1}


def test_a_digest_follows_the_files_of_a_folder(tmp_path):
    model = tmp_path / "reward"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = digest(model)
    assert before == digest(model) != digest(model / "config.json") and digest(tmp_path / "none") == ""
    (model / "config.json").write_text("{ }")
    assert digest(model) != before
