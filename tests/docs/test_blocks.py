"""Every code block of README and docs runs, or is parsed by what would read it; blocks.py says how."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from tests.docs.blocks import LANGUAGES, MARK, ROOT, Block, Page, blocks_of, pages
from tests.docs.running import run_blocks
from tests.docs.shell import Shell
from trl_dpo_ext.cli.arguments import option_names, read_for_another_machine
from trl_dpo_ext.migration.read import read_configuration
from trl_dpo_ext.migration.tools import migrated

PAGES = pages()
HEADERS = sorted([*ROOT.glob("recipes/*/*.yaml"), *ROOT.glob("recipes/accelerate/*.yaml")])


def of_pages(*languages: str) -> list[Any]:
    """The pages that have blocks of these languages; those whose Python is slow are marked."""
    chosen = [page for page in PAGES if page.of(*languages)]
    slow = pytest.mark.slow if "python" in languages else ()
    return [pytest.param(page, id=page.name, marks=slow if page.is_slow else ()) for page in chosen]


def minimal(folder: Path) -> Path:
    """The configuration that a page's commands mean where it shows none."""
    file = folder / "configuration.yaml"
    file.write_text("model_name_or_path: m\ndataset_name: d\noutput_dir: out\n")
    return file


def written(block: Block, folder: Path) -> Path:
    file = folder / (Path(block.value).name if block.mark == "file" else f"{block.line}.yaml")
    file.write_text(block.text)
    return file


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if page.blocks])
def test_every_block_has_a_language_that_is_checked(page: Page) -> None:
    for block in page.blocks:
        assert block.language in LANGUAGES, f"{block}: `{block.language}` is not one of {LANGUAGES}"
        if block.mark == "not run":
            assert len(block.value.split()) >= 3, f"{block}: say why it is not run"


def test_every_mark_stands_before_a_block() -> None:
    for page in PAGES:
        text = (ROOT / page.name).read_text(encoding="utf-8")
        assert len(re.findall(rf"^ *{MARK.pattern}", text, flags=re.MULTILINE)) == sum(
            block.mark != "" for block in page.blocks
        ), page.name


@pytest.mark.parametrize("page", of_pages("python", "pycon"))
def test_python_runs(page: Page, tmp_path: Path) -> None:
    problem = run_blocks(page.of("python", "pycon"), tmp_path)
    assert not problem, problem


@pytest.mark.parametrize("page", of_pages("yaml"))
def test_configurations_parse_strictly(page: Page, tmp_path: Path) -> None:
    for block in page.of("yaml"):
        file = written(block, tmp_path)
        if block.mark == "tool":
            _, draft = migrated(read_configuration(file), option_names(), block.value)
            assert draft.keys, block
        elif "distributed_type" in yaml.safe_load(block.text):
            load_config_from_file(str(file))
        else:
            assert read_for_another_machine(["--config", str(file)]).problems == (), str(block)


@pytest.mark.parametrize("page", of_pages("sh"))
def test_commands_parse(page: Page, tmp_path: Path) -> None:
    shell = Shell(tmp_path, minimal(tmp_path))
    for block in page.of("sh", "yaml"):
        if block.language == "sh":
            command = block.value if block.mark == "flags" else ""
            assert shell.problems(block.text, command) == [], str(block)
        elif block.mark == "file":
            shell.files[block.value] = written(block, tmp_path)
        elif block.mark != "tool" and "distributed_type" not in block.text:
            shell.configuration = written(block, tmp_path)


@pytest.mark.parametrize("page", of_pages("json", "toml"))
def test_data_parses(page: Page) -> None:
    for block in page.of("json", "toml"):
        (json.loads if block.language == "json" else tomllib.loads)(block.text)


def launch_line(file: Path) -> str:
    """The command under `Launch` in a file's header."""
    header = "\n".join(line.removeprefix("#") for line in file.read_text().splitlines() if line.startswith("#"))
    found = re.search(r"^ Launch(?: on [^\n]*:\n|:? ) *(.*?)(?<!\\)$", header, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


@pytest.mark.slow
def test_launch_lines_of_recipes_parse(tmp_path: Path) -> None:
    shell = Shell(tmp_path, minimal(tmp_path))
    lines = {file: launch_line(file) for file in HEADERS}
    assert len(list(filter(None, lines.values()))) >= 40
    assert {file.name: found for file, line in lines.items() if (found := shell.problems(line))} == {}


PAGE = """
<!-- not run: it needs a GPU -->
```python
boom
```

- A list:

  ```python
  x = 1
  x + 1  # -> 2
  ```

```{toctree}
page
```

<!-- file: run.yaml -->
```yaml
beta: 0.2
```
"""


def test_blocks_are_found_with_their_marks() -> None:
    found = blocks_of("page.md", PAGE)
    assert [(block.language, block.mark, block.value) for block in found] == [
        ("python", "not run", "it needs a GPU"), ("python", "", ""), ("yaml", "file", "run.yaml"),
    ]  # fmt: skip
    assert found[1].text == "x = 1\nx + 1  # -> 2\n"
    assert found[1].line == 10
    assert Page("page.md", found).of("python") == [found[1]]


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x = 1\nx + 1  # -> 3\n", "gives '2', not '3'"),
        ("print('a')  # -> b\n", "gives 'a', not 'b'"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "SystemExit"),
    ],
)
def test_what_python_does_otherwise_is_found(code: str, problem: str, tmp_path: Path) -> None:
    assert problem in run_blocks(blocks_of("page.md", f"```python\n{code}```\n"), tmp_path)


def test_a_page_shares_its_names_and_leaves_none_behind(tmp_path: Path) -> None:
    from trl_dpo_ext import list_losses

    page = """
```python
from trl_dpo_ext import register_loss
@register_loss(paper=None, verification="unverified")
def of_a_page(p):
    return -p.chosen.logps
```

```pycon
>>> of_a_page.__name__
'of_a_page'
```
"""
    assert run_blocks(blocks_of("page.md", page), tmp_path) == ""
    assert "of_a_page" not in {variant.name for variant in list_losses()}


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("trl-dpo-ext train --config run.yaml --betta 1", "betta"),
        ("accelerate launch --num_processes 2 -m trl_dpo_ext train --loss_type dpopp", "dpopp"),
        ("accelerate launch --num_procs 2 -m trl_dpo_ext train", "2"),
        ("accelerate launch --config_file recipes/accelerate/zero9.yaml -m trl_dpo_ext train", "zero9"),
        ("trl-dpo-ext losses dpop --jason", "2"),
        ("trl-dpo-ext score --outputt x --model_name_or_path m", "outputt"),
        ("trl-dpo-ext estimate --config zephyr-7b/dpo_full --gpu_memori 80", "gpu_memori"),
        ("trl-dpo-ext trian --config run.yaml", "commands are"),
        ("make tset && make demo", "no target tset"),
        ('pip install ".[plots]"', "no extra plots"),
        ("curl something", "nothing here can check"),
    ],
)
def test_what_a_command_would_refuse_is_found(command: str, problem: str, tmp_path: Path) -> None:
    (found,) = [each for each in Shell(tmp_path, minimal(tmp_path)).problems(command) if problem in each]
    assert found
