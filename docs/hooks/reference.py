"""Two pages of the site that follow from the source when it is built: the code map and the command line.
Nothing of the package is imported.
"""

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "jaxcxr"
MODULES = "<!-- every module, with the first sentence of its docstring -->"
COMMANDS = "<!-- every command, with its options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what a page asks for by one of the two marks."""
    for mark, written in ((MODULES, code_map), (COMMANDS, command_line)):
        if mark in markdown:
            markdown = markdown.replace(mark, written())
    return markdown


def code_map() -> str:
    """One table per folder of the package, outermost first: file, and what its docstring says first."""
    parts = []
    for folder in sorted({path.parent for path in PACKAGE.rglob("*.py")}):
        rows = [
            f"| `{path.name}` | {sentence} |"
            for path in sorted(folder.glob("*.py"))
            if (sentence := _first_sentence(_parsed(path)))
        ]
        if rows:
            name = folder.relative_to(PACKAGE.parent).as_posix()
            parts.append("\n".join([f"## `{name}/`", "", "| file | what it is |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def command_line() -> str:
    """One section per command: what its module says, and a table of the options of each of its classes."""
    parts = []
    for name, summary in _commands().items():
        module = _parsed(PACKAGE / "cli" / f"{name.replace('-', '_')}.py")
        said = ast.get_docstring(module) or ""
        parts.append(f"## `jaxcxr {name}`\n\n{summary[0].upper()}{summary[1:]}.\n\n```text\n{said}\n```")
        for node in module.body:
            if isinstance(node, ast.ClassDef) and _meanings(node):
                parts += [_options(node), *map(_options, _launching(node))]
    return "\n\n".join(parts)


def _launching(arguments: ast.ClassDef) -> list[ast.ClassDef]:
    """The class of flags that commands in parts inherit, if this is one."""
    bases = {base.id for base in arguments.bases if isinstance(base, ast.Name)}
    body = _parsed(PACKAGE / "cli" / "launching.py").body
    return [node for node in body if isinstance(node, ast.ClassDef) and node.name in bases]


def _commands() -> dict[str, str]:
    """The literal of `COMMANDS` in cli/commands.py: name -> summary."""
    for node in _parsed(PACKAGE / "cli" / "commands.py").body:
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == "COMMANDS"
        ):
            (literal,) = (part for part in ast.walk(node) if isinstance(part, ast.Dict))
            return ast.literal_eval(literal)
    raise SystemExit(f"{PACKAGE}/cli/commands.py: no COMMANDS there")


def _options(arguments: ast.ClassDef) -> str:
    """A class of arguments as a table; an option without hyphens is written by its place."""
    meanings = _meanings(arguments)
    rows = []
    for field in arguments.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            kind, by_place = _kind(field.annotation)
            name = f"{'' if by_place else '--'}{field.target.id.replace('_', '-')}"
            default = "required" if field.value is None else f"`{ast.unparse(field.value)}`"
            rows.append(f"| `{name}` | `{kind}` | {default} | {_cell(meanings.get(field.target.id, ''))} |")
    heading = ["| option | type | default | meaning |", "|---|---|---|---|"]
    return "\n".join([_first_sentence(arguments), "", *heading, *rows])


def _kind(annotation: ast.expr) -> tuple[str, bool]:
    """A type without what it tells the parser, and whether its option is written by its place."""
    if isinstance(annotation, ast.Subscript):
        wrapper = ast.unparse(annotation.value)
        if wrapper == "Annotated" and isinstance(annotation.slice, ast.Tuple):
            return _kind(annotation.slice.elts[0])
        if wrapper.startswith("tyro.conf."):
            return _kind(annotation.slice)[0], wrapper == "tyro.conf.Positional"
    return ast.unparse(annotation), False


def _meanings(arguments: ast.ClassDef) -> dict[str, str]:
    """Field -> what the class's docstring says of it under `Attributes:`."""
    _, _, attributes = (ast.get_docstring(arguments) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", textwrap.dedent(attributes)):
        names, _, text = entry.partition(":")
        found |= {name.strip(): " ".join(text.split()) for name in names.split(",") if text}
    return found


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _first_sentence(node: ast.Module | ast.ClassDef) -> str:
    """The first sentence of a docstring; empty where there is none."""
    paragraph = " ".join(inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")[0].split())
    return _cell(re.split(r"(?<=\.)\s", paragraph, maxsplit=1)[0])


def _cell(text: str) -> str:
    """A text in one cell of a table."""
    return text.replace("\\|", "|").replace("|", "\\|")
