"""Write the list of files into docs/architecture.md, each with its docstring's first sentence."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FIRST, LAST = "<!-- files -->", "<!-- end files -->"
FOLDERS = ("jobs", "neuronstats", "benchmarks", "tools")


def files() -> str:
    """List the files of all folders, a table each; `__init__.py` only where it says something."""
    lines: list[str] = []
    for top in FOLDERS:
        paths = (ROOT / top).rglob("*.py")
        by_folder: dict[str, list[str]] = {}
        for path in sorted(paths):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if text:
                sentence = " ".join(text.split("\n\n")[0].split())
                folder = str(path.parent.relative_to(ROOT))
                by_folder.setdefault(folder, []).append(f"- `{path.name}`: {sentence}")
        for folder, listed in sorted(by_folder.items()):
            lines += [f"\n**{folder}/**\n", *listed]
    return "\n".join(lines)


def page() -> str:
    """Return the page with the list as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(FIRST)
    _, _, after = rest.partition(LAST)
    return f"{before}{FIRST}\n{files()}\n\n{LAST}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
