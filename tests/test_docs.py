"""README and docs: their Python runs, their commands are parsed by the real parsers, their links and names exist."""

import functools
import importlib.util
import inspect
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
import torch
import tyro
import yaml

import eqssl
from eqssl.bench.command import Options as BenchOptions
from eqssl.bench.simulation import Plan
from eqssl.cli import COMMANDS, main
from eqssl.config import DataConfig, EncoderConfig, EvaluateConfig, RunConfig, TrainConfig
from eqssl.evaluation.command import Command as EvaluateOptions
from eqssl.methods import METHODS
from eqssl.metrics import METRICS
from eqssl.models.backbones import ENCODERS
from eqssl.models.encoder import Encoder
from eqssl.models.export import export_encoder
from eqssl.study.options import StudyOptions, parse
from eqssl.study.store.records import TrialRecord
from eqssl.study.summary import ConfigResult, StudySummary
from eqssl.training.command import TrainOptions
from tests.report.test_measured import MEASURED, stored

ROOT = Path(__file__).parents[1]
README = "README.md"
PAGES = {str(path.relative_to(ROOT)): path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))}
CURRENT = {name: text for name, text in PAGES.items() if name != "CHANGELOG.md"}  # which names what is gone
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:    .*\n|\n(?=    ))+")
SHELL = ("python", "python3", "eqssl", "ray", "aws", "pip", "export")
OURS = re.compile(
    r"(?<![\w/])((?:python -m )?eqssl [a-z]+\b|python -m eqssl\.\w[\w.]*|python studies/\w+\.py)([^`|&;#\n]*)"
)
# Options of other programs and of tools of this repository.
FOREIGN = {"--help", "--working-dir", "--exclusive", "--temp-dir"}


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its language (python, shell, text, ...) and its text."""

    page: str
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """Return the fenced and the indented blocks of a page, in their order within each kind."""
    found = [Block(page, {"bash": "shell"}.get(name, name), text) for name, text in FENCED.findall(PAGES[page])]
    for text in INDENTED.findall(FENCED.sub("", PAGES[page])):
        text = inspect.cleandoc(text)
        is_python = re.match(r"(import|from|def|class)\b", text) is not None
        language = "shell" if text.startswith(SHELL) else "python" if is_python else "text"
        found.append(Block(page, language, text))
    return found


BLOCKS = [block for page in CURRENT for block in blocks_of(page)]


def inline_code(page: str) -> list[str]:
    """Return the text in backticks outside of blocks, each on one line."""
    prose = INDENTED.sub("", FENCED.sub("", PAGES[page]))
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def commands() -> list[tuple[str, str]]:
    """Return page and text of every command of this package, from blocks and from backticks."""
    texts = [(block.page, block.text.replace("\\\n", " ")) for block in BLOCKS if block.language == "shell"]
    texts += [(page, code) for page in CURRENT for code in inline_code(page)]
    found = {(page, command + rest) for page, text in texts for command, rest in OURS.findall(text)}
    return sorted((page, command) for page, command in found if "..." not in command)


def module_at(path: Path) -> ModuleType:
    """Return the module of a file that is in no package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Parsed(BaseException):
    """The options of a command were accepted."""


def only_parse(target, *arguments, real=tyro.cli, **options):
    """Parse the options of a dataclass or of a function as `tyro.cli` does, and go no further."""
    if inspect.isfunction(target):
        target = functools.wraps(target)(lambda *given, **named: None)
    real(target, *arguments, **options)
    raise Parsed


def only_parse_subcommands(targets, *arguments, real=tyro.extras.subcommand_cli_from_dict, **options):
    """Do the same as `only_parse` for functions, or partial ones, by name."""

    def silent(target):
        if isinstance(target, functools.partial):
            return functools.partial(silent(target.func), *target.args, **target.keywords)
        return functools.wraps(target)(lambda *given, **named: None)

    real({name: silent(target) for name, target in targets.items()}, *arguments, **options)
    raise Parsed


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_accepted_by_the_real_parsers(page, command, monkeypatch):
    words = shlex.split(command.removeprefix("python ").removeprefix("-m "))
    if words[0].startswith("studies/"):
        study = module_at(ROOT / words[0]).STUDY
        if "--help" not in words:
            parse(study, words[1:])
        return
    monkeypatch.setattr(tyro, "cli", only_parse)
    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", only_parse_subcommands)
    run = main if words[0] == "eqssl" else importlib.import_module(words[0]).main
    name, *arguments = words if words[0] != "eqssl" else words[1:]
    if not arguments:  # named in prose
        assert name in COMMANDS or callable(run)
        return
    with pytest.raises(Parsed):
        run(words[1:])


def test_a_wrong_option_in_a_page_would_be_found(monkeypatch):
    monkeypatch.setattr(tyro, "cli", only_parse)
    with pytest.raises(SystemExit):
        main(["evaluate", "MODEL", "--evaluate.levle", "full"])


def options_of_all_commands() -> set[str]:
    known = set(FOREIGN)
    for options in (StudyOptions, TrainOptions, EvaluateOptions, BenchOptions, Plan):
        known |= set(tyro.extras.get_parser(options)._option_string_actions)
    return known | {"--from-predictions", "--root"}  # of `eqssl report` and `eqssl convert`


def test_options_in_prose_exist():
    known = options_of_all_commands()
    unknown = {
        (page, option)
        for page in CURRENT
        for code in inline_code(page)
        if code.startswith("--")
        for option in re.findall(r"(?:^|\s)(--[a-z][\w.-]*)", code)
        if option not in known
    }
    assert not unknown


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """Be in a folder with a result of the default study; configurations are small unless their values are given."""
    folder = tmp_path / "results" / "loss_weight"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text((MEASURED / "loss_weight" / "summary.json").read_text())
    export_encoder(Encoder(EncoderConfig(), 3, 32, (0.5,) * 3, (0.3,) * 3), folder / "best_encoder")
    data = DataConfig(objects=8, cache=str(tmp_path / "cache"))
    train, evaluate = TrainConfig(epochs=1, batch_size=8), EvaluateConfig(train_images=32, images=16)
    monkeypatch.setattr(eqssl, "DataConfig", lambda: data)
    monkeypatch.setattr(eqssl, "RunConfig", lambda: RunConfig(data=data, train=train, evaluate=evaluate))
    monkeypatch.chdir(tmp_path)
    registries: list[dict] = [METRICS, ENCODERS, METHODS]
    before = [dict(registry) for registry in registries]
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.mark.parametrize("page", sorted({block.page for block in BLOCKS if block.language == "python"}))
def test_python_runs_from_top_to_bottom(page, newcomer, capsys):
    names: dict = {"__name__": page}
    for block in BLOCKS:
        if block.page == page and block.language == "python":
            exec(compile(block.text, page, "exec"), names)
    if page == README:
        assert names["features"].shape == (16, 128)
        assert names["invariant"].shape == names["equivariant"].shape == (16, 64)
        assert torch.isfinite(torch.tensor(list(names["metrics"].values()))).all()


def test_shell_blocks_have_valid_syntax():
    for block in BLOCKS:
        if block.language == "shell":
            subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


def test_every_block_has_a_language_that_is_tested():
    assert {block.language for block in BLOCKS} <= {"python", "shell", "text", "yaml", "bibtex"}
    assert sum(block.language == "python" for block in BLOCKS) >= 5
    for block in BLOCKS:
        if block.language == "yaml":
            yaml.safe_load(block.text)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = FENCED.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_and_anchors_exist(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), link
        assert not anchor or anchor in anchors_of(path), link


@pytest.mark.parametrize("page", CURRENT)
def test_files_of_the_repository_in_backticks_exist(page):
    for code in inline_code(page):
        if re.fullmatch(r"(?:eqssl|studies|tests|docs|training|study|models|methods|data|evaluation)/[\w/]+\.py", code):
            assert (ROOT / code).exists() or (ROOT / "eqssl" / code).exists(), code


def test_every_page_is_linked_from_the_readme():
    assert [page for page in CURRENT if page != README and f"({page})" not in PAGES[README]] == []


def test_readme_is_short_and_has_both_commands_as_indented_lines():
    lines = PAGES[README].splitlines()
    assert len(lines) <= 200
    for command in ("python studies/loss_weight.py", "python -m pytest"):
        first = next(line for line in lines if line.startswith("    ") and command in line)
        assert first.startswith("    python3 -m venv .venv && ")


def test_readme_has_the_stored_sentence():
    assert stored("loss_weight")["sentence"] in " ".join(PAGES[README].split())


def test_pictures_are_those_of_the_script():
    drawn = module_at(ROOT / "docs" / "figures.py").drawings()
    assert {path.name for path in (ROOT / "docs").glob("*.svg")} == drawn.keys()
    for name, svg in drawn.items():
        assert (ROOT / "docs" / name).read_text() == svg, f"run {sys.executable} docs/figures.py"
        ElementTree.fromstring(svg)
        assert "prefers-color-scheme: dark" in svg and "@font-face" not in svg
        assert not re.search(r"(href|src)=|url\((?!#)", svg), "a file or a page of others"


def test_the_map_of_the_package_is_true():
    layers = module_at(ROOT / "docs" / "figures.py").LAYERS
    rows = {part: row for row, parts in enumerate(layers.values()) for names in parts for part in names.split(", ")}
    rows["study/"] = list(layers).index("study")  # as its parts, which are named alone

    def row_of(path: str) -> int | None:
        return next((row for part, row in rows.items() if path.startswith(part)), None)

    for path in ROOT.glob("eqssl/**/*.py"):
        own = row_of(path.relative_to(ROOT / "eqssl").as_posix())
        for name in re.findall(r"^(?:from|import) eqssl\.([\w.]+)", path.read_text(), re.MULTILINE):
            others = [row_of(name.replace(".", "/") + end) for end in (".py", "/")]
            above = [row for row in others if row is not None and own is not None and row < own]
            assert not above, f"{path} imports {name}"


def test_every_key_of_a_summary_is_described():
    text = PAGES["docs/results.md"]
    typed = [f.name for kind in (StudySummary, ConfigResult, TrialRecord) for f in fields(kind)]
    keys = {*stored("loss_weight"), *typed} - {"about", "records", "folder", "files"}
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def test_every_metric_is_described():
    text = PAGES["docs/evaluation.md"]
    names = [f"{m.name}/FACTOR" if m.per_factor else m.name for m in METRICS.values() if m.fn is None]
    # The equivariance of all factors together is a metric beside its family.
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_study_is_described():
    names = {path.name for path in (ROOT / "studies").glob("*.py")}
    assert [name for name in sorted(names) if f"`{name}`" not in PAGES["docs/studies.md"]] == []


def test_citation_and_workflows_are_valid_yaml():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert citation["version"] == eqssl.__version__
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["tests"]["steps"]]
    assert {"ruff check .", "ruff format --check .", "mypy", "python -m pytest"} <= set(steps)
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
