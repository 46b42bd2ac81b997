"""The documentation says what is true: its programs run, its commands and links exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import harmony_pulumi
from harmony_pulumi import Authentication
from harmony_pulumi.cli.main import app
from harmony_pulumi.hosts.postgresql.files import hba
from harmony_pulumi.hosts.postgresql.layout import Layout
from harmony_pulumi.kubernetes import objects
from harmony_pulumi.orchestration import rotation
from harmony_pulumi.orchestration.switchover import Step
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of, changed, project_of

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
COMMANDS = [(block, command) for block in BLOCKS for command, _ in block.commands()]
PROGRAMS = [page for page in PAGES if "__main__.py" in project_of(blocks_of(page))]
LINKED = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]


def of(*languages: str) -> list[object]:
    return [pytest.param(block, id=block.place) for block in BLOCKS if block.language in languages]


def name_of(page: object) -> str | None:
    return str(page.relative_to(ROOT)) if isinstance(page, Path) else None


def write(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_every_page_is_read() -> None:
    assert ROOT / "docs/index.md" in PAGES
    assert len(PROGRAMS) >= 5
    assert len(COMMANDS) >= 20


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text, block.place)


@pytest.mark.parametrize("block", of("yaml", "json"))
def test_yaml_and_json_parse(block: Block) -> None:
    documents = block.text.splitlines() if block.title.endswith(".jsonl") else [block.text]
    assert all(yaml.safe_load(document) for document in documents)


@pytest.mark.parametrize("page", PROGRAMS, ids=name_of)
def test_programs_run_under_mocks_as_first_given_and_after_each_change(page: Path, tmp_path: Path) -> None:
    blocks = blocks_of(page)
    files = project_of(blocks)
    write(files, tmp_path)
    assert_runs(tmp_path)
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block.title.endswith(".py") and block.language in {"diff", "python"}:
            new = changed(files[block.title], block.text) if block.language == "diff" else block.text
            if new != files[block.title]:
                files[block.title] = new
                write(files, tmp_path)
                if block.how == "refused":
                    assert_refused(tmp_path, after.text if after and after.language == "text" else "Error: …")
                else:
                    assert_runs(tmp_path)


def assert_refused(folder: Path, message: str) -> None:
    said = re.search(r"^harmony_pulumi\.input_errors\.(.*)", under_mocks(folder).stderr, re.MULTILINE | re.DOTALL)
    assert said
    parts = (re.escape(" ".join(part.split())) for part in message.split("…"))
    assert re.search(".*".join(parts), " ".join(said[1].split())), said[1]


def assert_runs(folder: Path) -> None:
    done = under_mocks(folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["resources"]


def under_mocks(folder: Path) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, str(Path(__file__).with_name("under_mocks.py"))]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_programs_pass_pyright(tmp_path: Path) -> None:
    for number, page in enumerate(PROGRAMS):
        write(project_of(blocks_of(page)), tmp_path / f"page{number}")
    folders = [{"root": f"page{number}"} for number in range(len(PROGRAMS))]
    config = {"typeCheckingMode": "standard", "executionEnvironments": folders, "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    pyright = ["pyright", "--pythonpath", sys.executable, "--project", str(tmp_path)]
    done = subprocess.run(pyright, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("block", of("diff"))
def test_a_change_fits_the_file_that_it_changes(block: Block) -> None:
    if not block.title:
        return
    files: dict[str, str] = {}
    for other in blocks_of(block.page):
        if other.title == block.title:
            files[block.title] = changed(files[block.title], other.text) if other.language == "diff" else other.text
    assert files


def harmony_commands() -> list[object]:
    found = [(block.place, command) for block, command in COMMANDS]
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        found += [(str(page.relative_to(ROOT)), code) for code in re.findall(r"`([^`\n]+)`", text)]
    return [
        pytest.param(command, id=f"{place} {command}")
        for place, command in found
        if re.match(r"harmony\s", command) and not re.search(r"[<>…]", command)
    ]


@pytest.mark.parametrize("command", harmony_commands())
def test_commands_and_flags_of_harmony_exist(command: str) -> None:
    words = shlex.split(command, comments=True)[1:]
    words = words[: next((i for i, word in enumerate(words) if word in {"|", "&&", ";"}), len(words))]
    named = words[:1] if words and not words[0].startswith("-") else []
    helped = CliRunner().invoke(app, [*named, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert helped.exit_code == 0, helped.output
    flags = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", helped.output))
    assert {word.partition("=")[0] for word in words if word.startswith("-")} <= flags


@pytest.mark.parametrize("command", sorted({c for _, c in COMMANDS if c.startswith("scripts/")}))
def test_scripts_and_their_flags_exist(command: str) -> None:
    script, *words = shlex.split(command, comments=True)
    text = (ROOT / script).read_text()
    assert all(word in text for word in words if word.startswith("-"))


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"", page.read_text())
    for link in (one or other for one, other in links):
        path, _, anchor = link.partition("#")
        if "://" not in link:
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors_of(target), link


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def templates() -> list[str]:
    """Return every text of the package, with `…` where a value stands."""
    found: list[str] = []
    for file in (ROOT / "harmony_pulumi").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages() -> list[str]:
    text = (ROOT / "docs/troubleshooting.md").read_text()
    return re.findall(r"^### `(.*)`$", text, re.MULTILINE)


def test_every_message_of_the_troubleshooting_page_is_one_of_the_package() -> None:
    known = templates()
    assert len(messages()) >= 20
    unknown = [
        message
        for message in messages()
        if not any(re.search(".*".join(re.escape(p.strip()) for p in message.split("…")), text) for text in known)
    ]
    assert unknown == []


def test_the_event_log_page_names_every_step() -> None:
    page = (ROOT / "docs/reference/event-log.md").read_text().partition("## Steps")[2]
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    sources = [file.read_text() for file in (ROOT / "harmony_pulumi").rglob("*.py")]
    steps = re.compile(r"journal\.(?:step|progress)\(\s*\"([a-z-]+)\"|\bstep=\"([a-z-]+)\"")
    known = {one or other for text in sources for one, other in steps.findall(text)} - {"note"} | {
        *Step,
        *rotation.Step,
    }
    assert known >= {"clone", "set-aside", "streaming", "leave"}
    assert {name for row in rows for name in re.findall(r"`([a-z-]+)`", row)} == known


def test_the_page_of_files_names_every_file_of_the_layout() -> None:
    page = (ROOT / "docs/reference/files.md").read_text()
    layout = Layout("/root", "/root/data")
    files = {getattr(layout, name) for name, of in vars(Layout).items() if isinstance(of, property)}
    paths = {path.removeprefix(f"{layout.root}/") for path in {*files, *layout.folders()} - {layout.root}}
    assert {path for path in paths if f"`{path}`" not in page and f"`{path}/" not in page} == set()


def test_the_reference_has_every_name_of_the_package() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    assert {name for name in harmony_pulumi.__all__ if f"\n::: harmony_pulumi.{name}\n" not in pages} == set()


def test_the_page_of_objects_names_whatever_is_kept_on_a_cluster() -> None:
    page = (ROOT / "docs/reference/kubernetes.md").read_text()
    cluster, sources = (
        "montreal-orders",
        [file.read_text() for file in (ROOT / "harmony_pulumi/kubernetes").rglob("*.py")],
    )
    named = {*objects.secret_names(cluster).values(), f"{cluster}-{objects.OUTSIDE}", f"{cluster}-operation"}
    named |= {f"{cluster}-{what}" for text in sources for what in re.findall(r'_keeping\("([a-z]+)"\)', text)}
    prefix = r'"((?:harmony-pulumi\.dev|pulumi\.com|cnpg\.io)/[A-Za-z-]+)"'
    named |= {word for text in sources for word in re.findall(prefix, text)}
    # What the operator sets, and things are found, or told, by.
    named -= {"cnpg.io/cluster", "cnpg.io/instanceRole", "cnpg.io/instanceName", "cnpg.io/jobRole", "cnpg.io/pvcRole"}
    named -= {"cnpg.io/podSpec"}
    assert len(named) >= 16
    assert {name for name in named if f"`{name}`" not in page} == set()


def test_the_page_of_certificates_has_the_rules_that_are_written() -> None:
    rules = hba(Authentication().networks, "").partition("\n")[2]
    page = ROOT / "docs/certificates-and-passwords.md"
    assert next(block for block in blocks_of(page) if block.title == "config/pg_hba.conf").text == rules
