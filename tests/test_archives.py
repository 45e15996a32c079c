"""Archives that mean harm, break off or are something else: refused by name, with nothing left that looks whole."""

from contextlib import contextmanager, suppress
from email.utils import formatdate
import gzip
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
import os
from pathlib import Path
import signal
import stat
import subprocess
import tarfile
from threading import Thread
from time import sleep

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from dcvit import archives, sources
from dcvit.archives import fetch, unpack
from dcvit.errors import DataError
from tests.helpers import environment, files_below, image_folder, python

BOUNDS = dict(max_bytes=10_000, max_members=20)


def member(name, content=b"", **fields):
    """A member of a tar and its content; fields are those of a TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def archive_of(path, *members, format=tarfile.GNU_FORMAT):
    """A tar.gz of these members, as they are."""
    with tarfile.open(path, "w:gz", format=format) as tar:
        for info, content in members:
            tar.addfile(info, BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path):
    """Two files in a folder."""
    folder = member("set", type=tarfile.DIRTYPE)
    return archive_of(tmp_path / "a.tgz", folder, member("set/a", b"one"), member("set/b/c", b"two"))


def refused(archive, message, **bounds):
    """Unpacking says this and leaves nothing at all beside the archive."""
    before = sorted(archive.parent.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        unpack(archive, archive.parent / "out", **{**BOUNDS, **bounds})
    assert str(archive) in str(caught.value)
    assert sorted(archive.parent.iterdir()) == before


# --- what is sound -------------------------------------------------------------------------


def test_a_sound_archive_is_unpacked(archive, tmp_path):
    assert unpack(archive, tmp_path / "out", **BOUNDS) == 2
    assert files_below(tmp_path / "out") == ["set/a", "set/b/c"]
    assert (tmp_path / "out" / "set" / "b" / "c").read_bytes() == b"two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz", "out"]


names = st.lists(st.sampled_from(["a", "b", "é", "ß"]), min_size=1, max_size=3).map("/".join)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(names, st.binary(max_size=2000), max_size=6), st.sampled_from([0, 1, 2]))
def test_what_was_packed_comes_back(tmp_path_factory, contents, format):
    """A path that is a file for one and a folder for another can't be had; all else comes back."""
    place = tmp_path_factory.mktemp("archives")
    path = archive_of(place / "a.tgz", *(member(*pair) for pair in contents.items()), format=format)
    impossible = any(other.startswith(f"{name}/") for name in contents for other in contents)
    if impossible:
        refused(path, "lies where", max_bytes=20_000)
        return
    assert unpack(path, place / "out", max_bytes=20_000, max_members=6) == len(contents)
    assert files_below(place / "out") == sorted(contents)
    assert {name: (place / "out" / name).read_bytes() for name in contents} == contents


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b", "A", "x" * 300]), min_size=1, max_size=4),
    st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE]),
)
def test_no_name_leads_out_of_the_folder(tmp_path_factory, parts, kind):
    place = tmp_path_factory.mktemp("archives")
    path = archive_of(place / "a.tgz", member("/".join(parts), b"", type=kind, linkname="../../x"))
    with suppress(DataError):
        unpack(path, place / "in" / "out", **BOUNDS)
        assert ".." not in parts
        assert kind in (tarfile.REGTYPE, tarfile.DIRTYPE)
    assert {entry.name for entry in place.iterdir()} <= {"a.tgz", "in"}
    assert not any(entry.is_symlink() for entry in place.rglob("*"))


def test_modes_and_times_are_not_the_archives(tmp_path):
    path = archive_of(
        tmp_path / "a.tgz",
        member("d", type=tarfile.DIRTYPE, mode=0o7777),
        member("d/run", b"#!/bin/sh", mode=0o6755, uid=0, mtime=10**9),
        member("d/none", b"", mode=0),
    )
    unpack(path, tmp_path / "out", **BOUNDS)
    for name in ("d/run", "d/none"):
        found = (tmp_path / "out" / name).stat()
        assert stat.S_IMODE(found.st_mode) == 0o644
        assert found.st_mtime > 10**9 + 1
    assert stat.S_IMODE((tmp_path / "out" / "d").stat().st_mode) & 0o7022 == 0
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "a/..", "a\\..\\x", "//x"])
def test_paths_that_lead_out_are_refused(tmp_path, name):
    refused(archive_of(tmp_path / "a.tgz", member(name, b"x")), "leads out of the folder")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE],
    ids=["symbolic link", "hard link", "character device", "block device", "fifo"],
)
def test_links_and_devices_are_refused(tmp_path, kind):
    path = archive_of(tmp_path / "a.tgz", member("a", b"1"), member("b", type=kind, linkname="a"))
    refused(path, "'b' is neither a plain file nor a folder")


def test_sparse_files_are_refused(tmp_path):
    """One of them says in a few bytes that it is as large as it likes."""
    header = tarfile.TarInfo("big")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"77777777777\0"  # its real size: 8 GiB
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        file.write(bytes(block) + bytes(1024))
    refused(tmp_path / "a.tgz", "'big' is neither a plain file nor a folder")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "a"),
        ("a", "./a"),
        ("a/b", "a//b"),
        ("a", "A"),
        ("a/x", "A/y"),
        ("\u00e9", "e\u0301"),
        ("ss", "ß"),
    ],
)
def test_names_that_are_the_same_somewhere_are_refused(tmp_path, first, second):
    path = archive_of(tmp_path / "a.tgz", member(first, b"1"), member(second, b"2"))
    refused(path, "lies where")


def test_a_folder_may_come_twice_and_after_what_is_in_it(tmp_path):
    folder = member("a/", type=tarfile.DIRTYPE)
    path = archive_of(
        tmp_path / "a.tgz", member("a/b", b"1"), folder, folder, member("./", type=tarfile.DIRTYPE)
    )
    assert unpack(path, tmp_path / "out", **BOUNDS) == 1


@pytest.mark.parametrize(
    "name", ["x" * 256, "é" * 128, "/".join("a" * 33)], ids=["long", "long in bytes", "deep"]
)
def test_names_that_no_file_system_takes_are_refused(tmp_path, name):
    refused(archive_of(tmp_path / "a.tgz", member(name, b"1")), "a part of more than 255 bytes")


def test_a_file_without_a_name_is_refused(tmp_path):
    refused(archive_of(tmp_path / "a.tgz", member("./.", b"1")), "is a file without a name")


@pytest.mark.parametrize("sizes", [(10_001,), (6000, 4001)])
def test_more_bytes_than_allowed_are_refused_with_the_member(tmp_path, sizes):
    path = archive_of(tmp_path / "a.tgz", *(member(f"f{i}", bytes(n)) for i, n in enumerate(sizes)))
    refused(path, rf"with 'f{len(sizes) - 1}' it is more than 10,000 bytes")
    assert unpack(path, tmp_path / "out", max_bytes=10_001, max_members=2) == len(sizes)


def test_more_members_than_allowed_are_refused(tmp_path):
    path = archive_of(tmp_path / "a.tgz", *(member(str(i)) for i in range(21)))
    refused(path, "more than 20 members")
    assert unpack(path, tmp_path / "out", max_bytes=0, max_members=21) == 21


@pytest.mark.parametrize("share", [1, 3])
def test_a_header_that_is_a_bomb_is_not_held_in_memory(tmp_path, share, monkeypatch):
    """A few kilobytes of gzip that say: a name of a gigabyte follows."""
    told = []
    original = archives._Bounded.read
    monkeypatch.setattr(
        archives._Bounded, "read", lambda self, count: told.append(block := original(self, count)) or block
    )
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(tmp_path / "a.tgz", "wb") as file:
        file.write(info.tobuf(tarfile.GNU_FORMAT) + bytes(share * archives.HEADERS))
    refused(tmp_path / "a.tgz", "larger than any that is needed|cut off or damaged")
    assert sum(map(len, told)) < 1.2 * archives.HEADERS


def test_what_follows_the_archive_is_read_to_its_checksum_and_no_further(tmp_path):
    archive_of(tmp_path / "a.tgz", member("a", b"1"))
    content = gzip.decompress((tmp_path / "a.tgz").read_bytes())
    (tmp_path / "a.tgz").write_bytes(gzip.compress(content + bytes(3 * archives.HEADERS)))
    refused(tmp_path / "a.tgz", "what follows the last member")
    damaged = bytearray(gzip.compress(content))
    damaged[-6] ^= 1  # gzip's checksum of all
    (tmp_path / "a.tgz").write_bytes(damaged)
    refused(tmp_path / "a.tgz", "cut off or damaged")


def test_an_archive_cut_off_anywhere_is_refused(archive):
    content = archive.read_bytes()
    for length in range(0, len(content), 3):
        archive.write_bytes(content[:length])
        refused(archive, "is no tar.gz, cut off or damaged")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6))
def test_damaged_headers_raise_nothing_else(tmp_path_factory, damage):
    place = tmp_path_factory.mktemp("archives")
    path = archive_of(
        place / "a.tgz", member("set/" + "long" * 40, b"one"), member("b", b"2"), format=tarfile.PAX_FORMAT
    )
    content = bytearray(gzip.decompress(path.read_bytes()))[:6144]
    for at, value in damage:
        content[at % len(content)] = value
    path.write_bytes(gzip.compress(bytes(content) + bytes(1024), 1))
    with suppress(DataError):
        unpack(path, place / "out", **BOUNDS)
        assert {entry.name for entry in place.iterdir()} == {"a.tgz", "out"}
        return
    assert {entry.name for entry in place.iterdir()} == {"a.tgz"}


def test_what_is_no_archive_is_named(tmp_path):
    for content in (b"", b"<html>", bytes(2000), gzip.compress(b"not a tar" * 99)):
        (tmp_path / "a.tgz").write_bytes(content)
        refused(tmp_path / "a.tgz", "is no tar.gz")


def test_what_is_there_already_is_left_alone(archive, tmp_path):
    for make in (lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")):
        make(tmp_path / "out")
        refused(archive, "is there already")
        assert os.path.lexists(tmp_path / "out")
        (tmp_path / "out").rmdir() if (tmp_path / "out").is_dir() else (tmp_path / "out").unlink()


def test_a_disk_that_is_full_leaves_nothing(archive, tmp_path, monkeypatch):
    original = Path.chmod

    def full(path, mode):
        if path.name == "c":
            raise OSError(28, "No space left on device")
        return original(path, mode)

    monkeypatch.setattr(Path, "chmod", full)
    with pytest.raises(OSError, match="No space left"):
        unpack(archive, tmp_path / "out", **BOUNDS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tgz"]


# --- fetching ------------------------------------------------------------------------------


@contextmanager
def serving(answer):
    """The address of a server of this machine whose every answer is written by `answer(handler)`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/set.tgz"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def sends(content, *, announced=None, cut=None, status=200, pause=0.0, **headers):
    """An answer: this content, of which `announced` bytes are promised (-1: nothing) and `cut` are sent."""

    def answer(handler):
        handler.send_response_only(status)
        handler.send_header("Date", formatdate(0))
        if announced != -1:
            handler.send_header("Content-Length", str(len(content) if announced is None else announced))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        try:
            for begin in range(0, len(content[:cut]), 4096):
                handler.wfile.write(content[:cut][begin : begin + 4096])
                sleep(pause)
        except OSError:
            pass  # the other side has gone, which is what some tests want

    return answer


CONTENT = bytes(range(256)) * 64
SUM = hashlib.sha256(CONTENT).hexdigest()


def fetched(folder, url, **changes):
    fetch(url, folder / "got", **{**dict(checksum=SUM, max_bytes=len(CONTENT), timeout=5.0), **changes})


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("announced", [None, -1], ids=["announced", "not announced"])
def test_what_was_sent_is_fetched(tmp_path, announced):
    with serving(sends(CONTENT, announced=announced)) as url:
        fetched(tmp_path, url)
        fetched(tmp_path, url, checksum=hashlib.md5(CONTENT).hexdigest().upper(), algorithm="md5")
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert files_below(tmp_path) == ["got"]


@pytest.mark.parametrize(
    ("answer", "changes", "message"),
    [
        (sends(CONTENT), dict(checksum="0" * 64), f"its sha256 is {SUM} and must be {'0' * 64}"),
        (sends(CONTENT), dict(max_bytes=len(CONTENT) - 1), "announces 16,384 bytes; at most 16,383"),
        (sends(CONTENT * 9, announced=-1), {}, "sends more than 16,384 bytes"),
        (sends(CONTENT, announced=-1, cut=5000), {}, "its sha256 is"),
        (sends(CONTENT, cut=5000), {}, "broke off after 5,000 of 16,384 bytes"),
        (sends(CONTENT * 9, announced=len(CONTENT) - 1), {}, "its sha256 is"),
        (sends(CONTENT, pause=0.05), dict(longest=0.02), "too slow"),
        (sends(b"5\r\nab", announced=-1, **{"Transfer-Encoding": "chunked"}), {}, "broke off"),
        (lambda handler: handler.wfile.write(b"nonsense\r\n\r\n"), {}, "broke off after 0 bytes"),
    ],
    ids=["checksum", "announced", "too much", "cut", "cut short", "longer", "slow", "chunks", "no HTTP"],
)
def test_what_is_not_as_promised_is_refused_and_leaves_nothing(tmp_path, answer, changes, message):
    with serving(answer) as url:
        with pytest.raises(DataError, match=message) as caught:
            fetched(tmp_path, url, **changes)
        assert url in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("announced", [None, -1])
def test_what_never_comes_is_waited_for_so_long(tmp_path, announced):
    slow = sends(CONTENT[:1], announced=announced and 5, pause=1.0)
    with serving(slow) as url, pytest.raises((DataError, TimeoutError)):
        fetched(tmp_path, url, timeout=0.2)
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_network_are_said_as_such(tmp_path):
    with serving(sends(b"", status=404)) as url, pytest.raises(OSError, match="404"):
        fetched(tmp_path, url)
    with pytest.raises(OSError, match="refused"):
        fetched(tmp_path, url)  # nobody is there any more
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", "data:,x"])
def test_only_the_web_is_asked(tmp_path, url):
    with pytest.raises(ValueError, match="https:// or http:// is needed"):
        fetched(tmp_path, url)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_an_answer_can_not_send_us_to_a_file(tmp_path, place):
    with (
        serving(sends(b"", status=302, Location=place)) as url,
        pytest.raises(OSError, match=r"unknown url type|not allowed"),
    ):
        fetched(tmp_path, url)
    assert list(tmp_path.iterdir()) == []


# --- Imagenette ----------------------------------------------------------------------------


@pytest.fixture
def imagenette(tmp_path, monkeypatch):
    """The bytes of a small Imagenette, whose checksum is the one that is expected."""
    image_folder(tmp_path / "made" / sources.IMAGENETTE, train=1, val=1, classes=sources.IMAGENETTE_CLASSES)
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as tar:
        tar.add(tmp_path / "made" / sources.IMAGENETTE, sources.IMAGENETTE)
    content = (tmp_path / "made.tgz").read_bytes()
    monkeypatch.setattr(sources, "IMAGENETTE_MD5", hashlib.md5(content).hexdigest())
    (tmp_path / "data").mkdir()
    return content


def test_imagenette_is_fetched_once(imagenette, tmp_path, monkeypatch):
    with serving(sends(imagenette)) as url:
        monkeypatch.setattr(sources, "IMAGENETTE_URL", url)
        source = sources.find(str(tmp_path / "data"), "small")
    assert (source.name, source.count("train")) == ("imagenette", 10)
    assert sources.find(str(tmp_path / "data"), "small").fingerprint == source.fingerprint
    assert [path.name for path in (tmp_path / "data").iterdir()] == [sources.IMAGENETTE]


@pytest.mark.parametrize("how", ["another checksum", "cut off", "another archive"])
def test_an_imagenette_that_is_not_it_is_not_taken(imagenette, tmp_path, monkeypatch, how):
    content = {"another checksum": imagenette + b" ", "cut off": imagenette[:999]}.get(how)
    if content is None:
        content = archive_of(tmp_path / "other.tgz", member("else/train/a.png", b"1")).read_bytes()
        monkeypatch.setattr(sources, "IMAGENETTE_MD5", hashlib.md5(content).hexdigest())
    with serving(sends(content)) as url:
        monkeypatch.setattr(sources, "IMAGENETTE_URL", url)
        with pytest.raises(DataError, match=r"could not be downloaded .*unpack it so that"):
            sources.find(str(tmp_path / "data"), "small")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_kill_in_the_middle_leaves_nothing_that_is_taken_for_the_set(imagenette, tmp_path, monkeypatch):
    """Killed while its second class is written; the next call begins anew, beside what was left."""
    program = f"""
from pathlib import Path
from time import sleep
from dcvit import archives, sources
original = Path.chmod
def chmod(path, mode):
    original(path, mode)
    if sources.IMAGENETTE_CLASSES[1] in str(path):
        print("here", flush=True)
        sleep(60)
Path.chmod = chmod
sources.IMAGENETTE_MD5 = {sources.IMAGENETTE_MD5!r}
import sys
sources.IMAGENETTE_URL = sys.argv[1]
sources.imagenette_root({str(tmp_path / "data")!r})
"""
    with serving(sends(imagenette)) as url:
        with subprocess.Popen(
            python("-c", program, url), stdout=subprocess.PIPE, env=environment(), text=True
        ) as process:
            assert process.stdout.readline() == "here\n"
            process.send_signal(signal.SIGKILL)
        assert [path.name[:2] for path in (tmp_path / "data").iterdir()] == [".i"]
        with pytest.raises(DataError, match="Imagenette is not in"):
            sources.find(str(tmp_path / "data"), "small", download=False)
        monkeypatch.setattr(sources, "IMAGENETTE_URL", url)
        assert sources.find(str(tmp_path / "data"), "small").count("val") == 10
