"""Files are there in full or not at all."""

import errno
import hashlib
import os

import pytest

from dcvit.files import sha256_of, write_atomically, write_text
from tests.helpers import files_below


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_written_is_read(tmp_path):
    write_text(tmp_path / "new" / "folder" / "a.txt", "Beta(α, α)\n")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "Beta(α, α)\n".encode()
    assert files_below(tmp_path) == ["new/folder/a.txt"]


def test_an_old_file_is_replaced(tmp_path):
    write_text(tmp_path / "a.txt", "old, and longer")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_others_may_read_the_file(tmp_path):
    write_text(tmp_path / "a.txt", "")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert files_below(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("problem", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_stops_half_way_leaves_nothing(tmp_path, problem):
    def write(path):
        path.write_text("half")
        raise problem

    with pytest.raises(problem):
        write_atomically(tmp_path / "a.txt", write)
    assert files_below(tmp_path) == []


def test_the_old_file_stays_readable_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    seen = []

    def write(temporary):
        temporary.write_text("new")
        seen.append((temporary.parent, path.read_text()))

    write_atomically(path, write)
    assert seen == [(tmp_path, "old")]
    assert path.read_text() == "new"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_checksum_is_that_of_the_whole_file(tmp_path, size):
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
