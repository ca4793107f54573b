"""Markdown pages as tests read them: their code blocks, headings and links, and a reader who follows them step by step."""

import re
import shlex
from pathlib import Path

from typer.testing import CliRunner

from layerprobe.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```', flags=re.S | re.M)


def read(page):
    return Path(page).read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page in one language."""
    return [code for kind, _, code in BLOCK.findall(read(page)) if kind == language]


def commands(page, start):
    """The shell commands of a page that begin with a word, each as a list of words."""
    return [words for code in blocks(page, "bash") for words in split(code) if words[0] == start]


def split(code):
    """Commands of a shell block, comments left out."""
    lines = (shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def call(words, *options):
    """What `layerprobe` prints on stdout for some words of a command; it must succeed."""
    result = CliRunner().invoke(app, [*words[1:], *options], catch_exceptions=False)
    assert result.exit_code == 0, (words, result.output)
    return result.stdout


def follow(page, run_options=()):
    """Do what a page says in the working folder: write titled TOML files, run `layerprobe` commands and Python blocks.

    Args:
        page: path of the page.
        run_options: further options of `layerprobe run`, which make it quick.

    Returns:
        The output of each command, by the command.
    """
    outputs, names = {}, {}
    for kind, title, code in BLOCK.findall(read(page)):
        if kind == "toml" and title.endswith(".toml"):
            Path(title).write_text(code, encoding="utf-8")
        elif kind == "python":
            exec(compile(code, str(page), "exec"), names)
        elif kind == "bash":
            for words in split(code):
                if words[0] == "layerprobe":
                    outputs[shlex.join(words)] = call(words, *(run_options if words[1] == "run" else ()))
    return outputs


def without_code(text):
    """A page without its code blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))


def links(text):
    """Targets of the links and images of a page."""
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text))


def anchors(text):
    """Anchors of the headings of a page, as Python-Markdown makes them."""
    found = []
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), flags=re.M):
        words, _, given = heading.partition(" {#")
        plain = re.sub(r"[^\w\s-]", "", words.replace("`", "")).strip().lower()
        found.append(given.rstrip("}") if given else re.sub(r"[-\s]+", "-", plain))
    return found
