"""The home of the little Markdown that printed pages are made of."""

from collections.abc import Iterable, Sequence

WRITTEN_BY = "<!-- Written by `make docs`; edit the code it is printed from. -->"


def code(text: str) -> str:
    return f"`{text}`" if text else "none"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", WRITTEN_BY, *parts]) + "\n"
