"""Files and folders appear whole or not at all."""

import pytest

from safety_modules.files import fresh_file, fresh_folder, write_text


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.txt"
    with fresh_file(path) as work:
        work.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new" and [file.name for file in path.parent.iterdir()] == ["a.txt"]
    write_text(path, "é")
    assert path.read_bytes() == "é".encode()


def test_a_failed_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), fresh_file(path) as work:
        work.write_text("half")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\udcff")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_replaces_the_old_one_only_when_it_is_whole(tmp_path):
    folder = tmp_path / "model"
    with fresh_folder(folder) as work:
        (work / "old").touch()
        assert not folder.exists()
    with pytest.raises(RuntimeError), fresh_folder(folder) as work:
        (work / "half").touch()
        raise RuntimeError
    assert [file.name for file in folder.iterdir()] == ["old"]
    with fresh_folder(folder) as work:
        (work / "new").touch()
    assert [file.name for file in folder.iterdir()] == ["new"] and list(tmp_path.iterdir()) == [folder]
