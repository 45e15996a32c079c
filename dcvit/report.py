"""One HTML page of all that runs have said: opens from disk, asks no network. No torch.

Here the page's words and numbers are put together; `templates/` holds how it looks and what a click does.
Whatever comes from a record is text and nothing else: the template engine escapes it, and the script
writes what it gets as JSON by `textContent`. Should that ever fail, the page still forbids itself every
script but its own, by checksum, and everything from outside (Content-Security-Policy).
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
import json
from pathlib import Path
import re
from typing import Any

from dcvit import __version__
from dcvit.behind import behind, calls_of, look_at
from dcvit.charts import WIDTH
from dcvit.errors import EnvironmentProblem
from dcvit.files import write_text
from dcvit.tables import Results, Table
from dcvit.views import LOOKS, charts_of, counts, overview, study_of
from dcvit.wording import NUMBER_RULE, RULE

try:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup, escape
    from plotly.offline import get_plotlyjs, get_plotlyjs_version
except ModuleNotFoundError as error:
    raise EnvironmentProblem(
        "the report needs jinja2 and plotly: python -m pip install 'dcvit[plots]'"
    ) from error

LARGEST = 10_000_000  # bytes of a page; pictures that would break it are left out
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Study:
    """What one folder of runs has to show: one scale, one data set."""

    name: str
    tables: tuple[tuple[Table, Results], ...]
    pictures: tuple[Path, ...] = ()  # PNG sheets of class activation maps


def write(path: Path, studies: Sequence[Study]) -> None:
    """Writes the page in one move: readers see all of it, or what was there before."""
    write_text(path, render(studies))


def render(studies: Sequence[Study]) -> str:
    """The page. Reads the pictures, and leaves out with a note those that would make it larger than `LARGEST`."""
    tables = [
        [look_at(f"s{number}-{table.name}", table, results) for table, results in study.tables]
        for number, study in enumerate(studies)
    ]
    calls = [calls_of(study.tables) for study in studies]
    drawn = [charts_of(found, names) for found, names in zip(tables, calls, strict=True)]
    data = [
        {**behind(found, names), **charts} for found, names, charts in zip(tables, calls, drawn, strict=True)
    ]
    plotly, script = get_plotlyjs(), _template("report.js")
    frame = dict(
        studies=[
            {"number": number, "name": study.name, **study_of(f"s{number}", found), **charts}
            for number, (study, found, charts) in enumerate(zip(studies, tables, drawn, strict=True))
        ],
        claims=overview([study.name for study in studies], tables),
        counts=[counts(found) for found in tables],
        rules=[RULE, NUMBER_RULE],
        versions=_versions(),
        largest=f"{LARGEST / 1e6:g} MB",
        policy=_policy(plotly, script),
        style=_html(_template("report.css")),
        data=_html(embedded(data)),
        plotly=_html(plotly),
        script=_html(script),
    )
    page = _templates().get_template("report.html.j2")
    room = LARGEST - len(page.render(pictures=[[] for _ in studies], **frame).encode())
    return page.render(pictures=_pictures(studies, room), **frame)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _versions() -> dict[str, str]:
    return {
        "dcvit": __version__,
        "jinja2": version("jinja2"),
        "plotly": version("plotly"),
        "plotly.js": get_plotlyjs_version(),
    }


# --- what must not break the page ----------------------------------------------------------


def _templates() -> Environment:
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"marked": marked, "look": LOOKS.__getitem__}
    templates.globals["width"] = WIDTH
    return templates


def _html(trusted: str) -> Markup:
    """A file of this package or of plotly, or JSON from `embedded`, as it is."""
    return Markup(trusted)


def embedded(data: Any) -> str:
    """JSON that may stand inside of a script element: nothing in it can end the element or begin a comment.

    >>> embedded({"name": "</script><!--"})
    '{"name":"\\\\u003c/script\\\\u003e\\\\u003c!--"}'
    """
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def marked(text: str) -> Markup:
    """The markdown of our own sentences, `code` and **bold**, as HTML; all else is escaped first.

    >>> str(marked("**a** `b` <c>"))
    '<strong>a</strong> <code>b</code> &lt;c&gt;'
    """
    escaped = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(text)))
    return _html(re.sub(r"`(.+?)`", r"<code>\1</code>", escaped))


def _policy(*scripts: str) -> str:
    """What the page may do: run these very scripts, show its own styles and pictures, and nothing else."""
    sums = " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in scripts)
    return f"default-src 'none'; script-src {sums}; style-src 'unsafe-inline'; img-src data: blob:"


# --- pictures -------------------------------------------------------------------------------


def _pictures(studies: Sequence[Study], room: int) -> list[list[dict[str, Any]]]:
    """Each study's pictures as data, or without where no room is left for them."""
    shown: list[list[dict[str, Any]]] = []
    for study in studies:
        shown.append([])
        for path in study.pictures:
            content = path.read_bytes()
            picture = {"name": path.name, "size": f"{len(content) / 1e6:.1f} MB", "data": ""}
            cost = len(content) * 4 // 3 + 1000  # with its frame and its caption
            if cost <= room:
                picture["data"] = b64encode(content).decode()
                room -= cost
            else:
                room -= 1000
            shown[-1].append(picture)
    return shown
