"""The columns of all tables as Markdown, from their declarations; writes docs/format.md's."""

from pathlib import Path

from neuronstats.stats.sections import TABLES

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
START, END = "<!-- columns:", "<!-- end of columns -->"


def columns_page():
    parts = []
    for name, (row, columns) in TABLES.items():
        lines = [
            f"### {name}.parquet: a row per {row}\n",
            "| column | type | meaning |",
            "|---|---|---|",
        ]
        lines += [f"| `{column.name}` | `{column.kind}` | {column.meaning} |" for column in columns]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def replaced(text):
    """A page's text with the columns between its two marks."""
    start = text.index("\n", text.index(START)) + 1
    return f"{text[:start]}{columns_page()}\n{text[text.index(END) :]}"


if __name__ == "__main__":
    FORMAT.write_text(replaced(FORMAT.read_text()))
