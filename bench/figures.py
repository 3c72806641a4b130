"""The home of figures: what was measured, the bar it has to clear, and the table at the end."""

from collections.abc import Callable, Sequence
from statistics import median

from msgspec import Struct
from rich.console import Console
from rich.table import Table

WIDTH = 120

Show = Callable[[float], str]


def count(value: float) -> str:
    return f"{value:,.0f}"


def ratio(value: float) -> str:
    return f"{value:.2f}"


def percent(value: float) -> str:
    return f"{value:.1%}"


def ms(value: float) -> str:
    return f"{value:.2f} ms"


def us(value: float) -> str:
    return f"{value:,.0f} us"


def rate(value: float) -> str:
    return f"{value:,.0f}/s"


class Bar(Struct, frozen=True, kw_only=True):
    """What the median has to be, at least or at most."""

    at_least: float | None = None
    at_most: float | None = None

    def cleared(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def shown(self, show: Show) -> str:
        if self.at_least is not None:
            return f">= {show(self.at_least)}"
        assert self.at_most is not None
        return f"<= {show(self.at_most)}"


class Figure(Struct, frozen=True, kw_only=True):
    """One row: a sample of each run."""

    name: str
    samples: Sequence[float]
    show: Show
    bar: Bar | None = None

    @property
    def missed(self) -> bool:
        return self.bar is not None and not self.bar.cleared(median(self.samples))

    def row(self) -> tuple[str, ...]:
        low, middle, high = min(self.samples), median(self.samples), max(self.samples)
        verdict = "" if self.bar is None else "missed" if self.missed else "ok"
        bar = "" if self.bar is None else self.bar.shown(self.show)
        return (self.name, *map(self.show, (low, middle, high)), bar, verdict)


def show(figures: Sequence[Figure], *, title: str) -> None:
    """Print the table."""
    table = Table("figure", title=title, title_justify="left")
    for column in ("min", "median", "max", "bar"):
        table.add_column(column, justify="right")
    table.add_column("")
    for figure in figures:
        table.add_row(*figure.row(), style="red" if figure.missed else None)
    Console(highlight=False, width=WIDTH).print(table)
