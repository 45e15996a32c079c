"""Nothing that is read is executed: checkpoints, records, shards, images and the pages made of them are data."""

import ast
from html.parser import HTMLParser
from io import BytesIO
import json
import os
import pickle
import re
import struct
import tarfile
import warnings
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from PIL import EpsImagePlugin, Image
import pytest
from safetensors.torch import save
import torch

from dcvit import ledger, report, sources
from dcvit.errors import DataError
from dcvit.gather import read_all
from dcvit.ledger import UnusableRecord
from dcvit.pages import render as page_of
from dcvit.recipe import as_data
from dcvit.report import Study, render
from dcvit.shards import entries
from dcvit.sources import check_readable, from_folder
from dcvit.tables import Results
from dcvit.trained import read_checkpoint
from tests.helpers import ROOT, TWO, image_folder, record_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# --- the package itself --------------------------------------------------------------------

EXECUTING = {
    *("pickle", "marshal", "shelve", "dill", "joblib", "yaml", "runpy"),  # modules
    *("eval", "exec", "compile", "__import__"),  # built-in functions
    *("os.system", "os.popen", "torch.jit.load", "torch.hub.load", "tar.extractall", "tar.extract"),
    "shutil.unpack_archive",
}
SOURCES = sorted([*(ROOT / "dcvit").glob("*.py"), *(ROOT / "reproductions").glob("*.py")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_room_unpickles_unpacks_or_executes_by_itself(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {alias.name for alias in node.names} & EXECUTING
        elif isinstance(node, ast.ImportFrom):
            assert node.module not in EXECUTING
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert called not in EXECUTING, f"line {node.lineno}"
            assert given.get("shell", "False") == "False", f"line {node.lineno}"
            assert given.get("allow_pickle", "False") == "False", f"line {node.lineno}"
            if called == "torch.load":
                assert given["weights_only"] == "True", f"line {node.lineno}"


# --- checkpoints ---------------------------------------------------------------------------


class Command:
    """Runs a command of the shell when it is unpickled by somebody trusting."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def by_pickle(value, path):
    path.write_bytes(pickle.dumps(value))


def by_old_torch(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("save_as", [torch.save, by_old_torch, by_pickle])
@pytest.mark.parametrize("place", ["alone", "beside tensors", "in a tensor's place"])
def test_a_command_in_a_checkpoint_is_not_run(tmp_path, suffix, save_as, place):
    trap = Command(tmp_path / "touched")
    value = {
        "alone": trap,
        "beside tensors": {"model": {"w": torch.zeros(2)}, "args": trap},
        "in a tensor's place": {"model": {"w": trap}},
    }[place]
    file = tmp_path / f"weights{suffix}"
    save_as(value, file)
    with pytest.raises(ValueError, match=rf"{file} can't be read as a checkpoint"):
        read_checkpoint(file)
    assert not (tmp_path / "touched").exists()


def test_the_trap_works_for_the_trusting(tmp_path):
    """Else the test above would prove nothing."""
    torch.save(Command(tmp_path / "touched"), tmp_path / "weights.pt")
    torch.load(tmp_path / "weights.pt", weights_only=False)
    assert (tmp_path / "touched").exists()


def whole_safetensors():
    return save({"w": torch.arange(6.0)})


def with_header(header, tensors=b""):
    return struct.pack("<Q", len(header)) + header + tensors


HUGE = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
BENT = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}).encode()
DEEP = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 99 << 20) + b"{}",
        with_header(HUGE),
        with_header(BENT, bytes(8)),
        with_header(DEEP),
        with_header(b'{"w": 1}'),
        with_header(b"\xff" * 8),
        whole_safetensors()[:-1],
        whole_safetensors() + b" ",
    ],
    ids=[
        "2^63",
        "2^64",
        "99 MB",
        "tensor of 4 TB",
        "before its begin",
        "deep",
        "1",
        "no text",
        "cut",
        "more",
    ],
)
def test_a_safetensors_header_that_lies_is_a_plain_error(tmp_path, content):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{file} can't be read as a checkpoint"):
        read_checkpoint(file)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 200), st.integers(0, 255))
def test_a_damaged_safetensors_is_an_error_or_tensors(tmp_path_factory, at, value):
    content = bytearray(whole_safetensors())
    content[at % len(content)] = value
    file = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    file.write_bytes(content)
    try:
        found = read_checkpoint(file)
    except ValueError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    assert sum(tensor.nbytes for tensor in found.values()) <= len(content)


# --- records -------------------------------------------------------------------------------

EPOCH = dict(easy=0.2, hard=0.3, histogram=[1, 2], alpha=0.8, loss=1.0, top1=50.0, seconds=1.0)
DATA = dict(name="folder", fingerprint="0123456789abcdef", classes=3, train_images=12, test_images=8)


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound record."""
    recipe = TWO.cells[0].recipe
    ledger.write(tmp_path, record_of(recipe, 0, 50.0, data=DATA, evolution=[EPOCH]))
    assert ledger.read(tmp_path).recipe == as_data(recipe)
    return tmp_path


NOT_JSON = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e999",
    "1" * 400,
    "[" * 2000 + "]" * 2000,
    '"\\ud800"',
    "0x1",
]


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda value: value[:12])
@pytest.mark.parametrize("field", ["seconds", "recipe", "data", "last"])
def test_what_json_has_not_or_nobody_needs_makes_a_record_unusable(folder, field, value):
    facts = {**json.loads((folder / "record.json").read_text()), field: "@"}
    (folder / "record.json").write_text(json.dumps(facts).replace('"@"', value))
    with pytest.raises(UnusableRecord, match=r"record\.json is cut off or damaged"):
        ledger.read(folder)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 10**4), st.binary(min_size=1, max_size=3)), min_size=1, max_size=4))
def test_a_record_with_bytes_of_something_else_is_read_or_unusable(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("record")
    ledger.write(folder, record_of(TWO.cells[0].recipe, 0, 50.0, data=DATA, evolution=[EPOCH]))
    content = bytearray((folder / "record.json").read_bytes())
    for at, value in damage:
        at %= len(content)
        content[at : at + len(value)] = value
    (folder / "record.json").write_bytes(content)
    try:
        record = ledger.read(folder)
    except UnusableRecord as error:
        assert str(folder) in str(error)  # noqa: PT017 (either is right)
    else:
        assert record.layout == ledger.LAYOUT


NOT_OF_ITS_TYPE = {
    "text": "<x>",
    "null": None,
    "list": [],
    "dict": {},
    "true": True,
    "huge": 1e308,
    "deep": "@",
}
PATHS = [
    *(
        ("layout",),
        ("run_id",),
        ("seed",),
        ("parameters",),
        ("samples_seen",),
        ("correct",),
        ("started",),
        ("seconds",),
    ),
    *(
        ("recipe",),
        ("recipe", "backbone"),
        ("recipe", "betas"),
        ("data",),
        ("data", "fingerprint"),
        ("data", "classes"),
    ),
    *(("environment",), ("environment", "versions"), ("environment", "device"), ("environment", "dirty")),
    *(("environment", "commit"), ("last",), ("last", "top1"), ("best",), ("best", "top5"), ("weights",)),
    *(("evolution",), ("evolution", 0), ("evolution", 0, "easy"), ("evolution", 0, "histogram")),
    ("environment", "threads"),
]


@pytest.mark.parametrize("bad", NOT_OF_ITS_TYPE)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_value_of_another_type_is_no_traceback(tmp_path, path, bad):
    """The record is set aside with a reason, or a page can be made of it."""
    recipe = TWO.cells[0].recipe
    folder = tmp_path / "ledger" / "run"
    ledger.write(folder, record_of(recipe, 0, 50.0, data=DATA, evolution=[EPOCH]))
    facts = at = json.loads((folder / "record.json").read_text())
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = NOT_OF_ITS_TYPE[bad]
    (folder / "record.json").write_text(json.dumps(facts).replace('"@"', "[" * 1000 + "]" * 1000))
    found, unusable = read_all(tmp_path)
    assert len(found) + len(unusable) == 1
    if bad == "deep":
        assert not found
    for one in found:
        results = Results(
            scale="small",
            images="folder",
            seeds=(0,),
            twins={cell.recipe: cell.recipe for cell in TWO.cells},
            records={one.record.run_id: one.record},
        )
        assert page_of(TWO, results)
        assert render([Study("runs", ((TWO, results),))])


# --- shards --------------------------------------------------------------------------------


def png():
    buffer = BytesIO()
    Image.fromarray(np.zeros((5, 7), dtype=np.uint8)).save(buffer, "png")
    return buffer.getvalue()


def shard(path, *members):
    """A tar of (name, content, fields of TarInfo)."""
    with tarfile.open(path, "w") as tar:
        for name, content, fields in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, BytesIO(content))


SOUND = [("0.png", png(), {}), ("0.cls", b"0", {})]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("ending", [".png", ".cls"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "0.png", "1.cls"])
def test_a_link_in_a_shard_leads_nowhere(tmp_path, kind, ending, target):
    """Not to a file of this machine, not to another member, and not in a circle."""
    others = [
        member for member in [("1.png", png(), {}), ("1.cls", b"1", {})] if not member[0].endswith(ending)
    ]
    shard(tmp_path / "train.tar", *SOUND, *others, (f"1{ending}", b"", dict(type=kind, linkname=target)))
    with pytest.raises(
        DataError, match=rf"train\.tar can't be read as a shard: '1{ending}' is no plain file"
    ):
        entries(tmp_path, "train")


@pytest.mark.parametrize("name", ["/etc/passwd", "../../x", "a/../../x", "//x", "\\x"])
def test_whatever_a_member_is_called_its_bytes_are_those_of_the_shard(tmp_path, name):
    for split in ("train", "val"):
        shard(tmp_path / f"{split}.tar", (f"{name}.png", png(), {}), (f"{name}.cls", b"0", {}))
    source = sources.from_shards(tmp_path)
    assert {file.path for file in (*source.train, *source.val)} == {"train.tar", "val.tar"}
    with source.train[0].open(tmp_path) as content:
        assert content.read() == png()


def test_a_remembered_index_opens_nothing_but_the_shards(tmp_path):
    shard(tmp_path / "train.tar", *SOUND)
    (sound,) = entries(tmp_path, "train")
    (known,) = (sources.cache_folder() / "shards").iterdir()
    for elsewhere in ("/etc/passwd", "../secret", "val.tar"):
        known.write_text(json.dumps([[elsewhere, *sound[1:]]]))
        assert entries(tmp_path, "train") == [sound]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (b"1" * 21, r"'0\.cls' has 21 bytes, too many for a class number"),
        (b"9" * 20, r"class number 9{20} is above 999,999"),
        (b"1000000", r"class number 1000000 is above 999,999"),
        (b"-1", "a class number is negative"),
        (b"1e3", r"train\.tar can't be read as a shard"),
        (b"\xff", r"train\.tar can't be read as a shard"),
        (b"", r"train\.tar can't be read as a shard"),
    ],
)
def test_labels_are_small_numbers(tmp_path, label, message):
    """A set of as many classes as the largest of them says is made from these."""
    shard(tmp_path / "train.tar", ("0.png", png(), {}), ("0.cls", label, {}))
    with pytest.raises(DataError, match=message):
        entries(tmp_path, "train")


@pytest.mark.parametrize("size", [10**6, 2**33, 2**62])
def test_a_size_that_lies_is_not_believed(tmp_path, size):
    """No buffer is made for an image that is said to be larger than its shard."""
    shard(tmp_path / "train.tar", *SOUND)
    content = bytearray((tmp_path / "train.tar").read_bytes())
    info = tarfile.TarInfo("0.png")
    info.size = size
    content[:512] = info.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "train.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.tar"):
        entries(tmp_path, "train")


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 2600), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_shard_is_refused_or_read_within_itself(tmp_path_factory, damage):
    folder = tmp_path_factory.mktemp("shards")
    shard(folder / "train.tar", *SOUND)
    content = bytearray((folder / "train.tar").read_bytes())
    for at, value in damage:
        content[at] = value
    (folder / "train.tar").write_bytes(content)
    try:
        found = entries(folder, "train")
    except DataError as error:
        assert "train.tar" in str(error)  # noqa: PT017 (either is right)
        return
    assert all(entry.shard == "train.tar" and entry.offset + entry.size <= len(content) for entry in found)


# --- images --------------------------------------------------------------------------------


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width, height):
    """A PNG of a few kilobytes that says to be so large, without all of its rows."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")


def jpeg_bomb(width, height):
    buffer = BytesIO()
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(buffer, "jpeg")
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("warned", ["error", "ignore"])
@pytest.mark.parametrize("bomb", [png_bomb, jpeg_bomb])
@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)])
def test_a_picture_that_would_fill_the_memory_is_named_and_not_decoded(
    tmp_path, monkeypatch, bomb, size, warned
):
    """Below twice Pillow's bound there is only a warning, which may be switched off."""
    root = image_folder(tmp_path / "images")
    path = root / "train" / "red" / "0.png"
    path.write_bytes(bomb(*size))
    monkeypatch.setattr(Image.Image, "convert", _only_small(Image.Image.convert))
    source = from_folder(root)
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        with pytest.raises(DataError, match=rf"1 of 12 images can't be read.*\n  {path}: .*pixels"):
            check_readable(source, source.train)


def _only_small(convert):
    def checked(image, *arguments, **named):
        assert image.width * image.height < 10**6, "a bomb is being decoded"
        return convert(image, *arguments, **named)

    return checked


def test_a_program_that_calls_itself_a_picture_is_not_run(tmp_path, monkeypatch):
    """Pillow looks at the content, and hands PostScript to an interpreter."""
    asked = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments, **named: asked.append(arguments))
    root = image_folder(tmp_path / "images")
    path = root / "train" / "red" / "0.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n")
    source = from_folder(root)
    with pytest.raises(DataError, match=rf"1 of 12 images can't be read.*\n  {path}: cannot identify"):
        check_readable(source, source.train)
    assert asked == []


# --- pages ---------------------------------------------------------------------------------

PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror="alert(1)">',
    "'><svg onload='alert(1)'>",
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</style></title></textarea>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt;&#x3c;",
    "**bold** `code`",
    "| a | b |\n|---|---|\r\n# heading",
    "\u2028\u2029\u0085\x0b\x00",
)
HOSTILE = " ".join(PAYLOADS)


def hostile_record(recipe, text):
    """A record with this in every string of it that is not compared with something or counted."""
    return record_of(
        recipe,
        0,
        50.0,
        data={**DATA, "name": text, "fingerprint": text},
        environment={
            **dict.fromkeys(("commit", "device", "device_name", "precision", "python", "difference"), text),
            "dirty": True,
            text: text,
            "versions": {"torch": text, "timm": text, text: text},
        },
        weights={text: text},
        started=text,
        evolution=[EPOCH] * 3,
    )


def study_with(text, *, pictures=()):
    """A study in which a run has finished, the other one failed, and everything is called like this."""
    recipes = list(dict.fromkeys(cell.recipe for cell in TWO.cells))
    done = hostile_record(recipes[0], text)
    failed = record_of(recipes[1], 0, 0.0).run_id
    results = Results(
        scale="small",
        images=text,
        seeds=(0,),
        twins={recipe: recipe for recipe in recipes},
        records={done.run_id: done},
        problems={failed: text, text: text},
    )
    return Study(text, ((TWO, results),), pictures)


@pytest.fixture(autouse=True)
def no_plotly(monkeypatch):
    """Four megabytes of a script that is not looked at here."""
    monkeypatch.setattr(report, "get_plotlyjs", lambda: "0")


class Skeleton(HTMLParser):
    """What of a page is markup: tags and their attributes, without values that are words for people."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.data, self._in_data = [], "", False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        words = ("aria-label", "alt", "content")
        self.tags.append((tag, [(name, "" if name in words else value) for name, value in attributes]))
        self._in_data = ("id", "data") in attributes

    handle_startendtag = handle_starttag

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", []))
        self._in_data = False

    def handle_data(self, text):
        self.data += text if self._in_data else ""

    def handle_comment(self, text):
        self.tags.append(("comment", [text]))

    handle_decl = handle_pi = unknown_decl = handle_comment


def texts_of(value):
    """All strings in JSON, keys too."""
    if isinstance(value, dict):
        return [*value, *(text for entry in value.values() for text in texts_of(entry))]
    if isinstance(value, list):
        return [text for entry in value for text in texts_of(entry)]
    return [value] if isinstance(value, str) else []


def as_markup(text):
    html = render([study_with(text), study_with(text)])
    return Skeleton(html)


@pytest.mark.parametrize("text", [*PAYLOADS, HOSTILE], ids=lambda text: ascii(text)[:25])
def test_no_string_of_a_record_becomes_markup(text):
    """The page has the very tags and attributes that it has when everything is called `plain`."""
    found = as_markup(text)
    assert found.tags == as_markup("plain").tags
    assert texts_of(json.loads(found.data)).count(text) >= 20  # and all of it is there
    assert not set("<>&\u2028\u2029") & set(found.data)


@settings(deadline=None, max_examples=25)
@given(st.text(alphabet=st.sampled_from("<>&\"'/=!-`{}%#;\\ script\u2028\x00"), min_size=1))
def test_nor_does_any_other_text(text):
    plotly = report.get_plotlyjs
    report.get_plotlyjs = lambda: "0"
    try:
        assert as_markup(text).tags == as_markup("plain").tags
    finally:
        report.get_plotlyjs = plotly


@pytest.mark.parametrize("text", [*PAYLOADS, HOSTILE], ids=lambda text: ascii(text)[:25])
def test_nor_does_it_on_a_markdown_page(text):
    """As many lines, tables of as many columns, and no HTML at all."""
    (table, results) = study_with(text).tables[0]
    (_, plain) = study_with("plain").tables[0]
    shown, expected = page_of(table, results), page_of(table, plain)
    assert [re.match(r"\W{0,3}", line)[0] for line in shown.splitlines()] == [
        re.match(r"\W{0,3}", line)[0] for line in expected.splitlines()
    ]
    for here, there in zip(shown.splitlines(), expected.splitlines(), strict=True):
        if there.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", here)) == len(re.findall(r"(?<!\\)\|", there))
    assert not re.search(r"<\w|</|<!|<%", shown)
    assert not re.search(r"(?<!\\)\]\(", shown)


def test_neither_does_the_name_of_a_picture(tmp_path):
    names = ['"><img src=x onerror=alert(1)>.png', "<script>alert(1)<!--.png", "plain.png"]
    tags = []
    for name in names:
        path = tmp_path / name
        path.write_bytes(png())
        tags.append(Skeleton(render([study_with("plain", pictures=(path,))])).tags)
    assert tags[0] == tags[1] == tags[2]
