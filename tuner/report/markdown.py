"""ReportData -> report.md: the answer, for a pull request. Pure; runs on the driver."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tuner import metric_text
from tuner.report import answers
from tuner.report.listing import baselines_table, front_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuner.report.data import ReportData
    from tuner.report.listing import Table


def report_md(data: ReportData) -> str:
    """The answer, what can be told apart, the diagnoses and the front, in GitHub's Markdown."""
    return "\n".join(_lines(data)) + "\n"


def escaped(text: str) -> str:
    """Text that means itself in Markdown and in a table's cell."""
    flat = " ".join(text.split())
    plain = flat.replace(metric_text.NO_BREAK_SPACE, " ").replace("&", "&amp;").replace("@", "&#64;")
    return re.sub(r"([\\`*_{}\[\]<>|~$]|^#)", r"\\\1", plain)


def _lines(data: ReportData) -> Iterator[str]:
    yield f"# {escaped(data.config.name)}: which LoRA to ship"
    yield ""
    yield escaped(answers.headline(data))
    cards = answers.build_cards(data)
    if cards:
        yield from ("", "## Which one to ship", "")
        yield from _table(("", "trial", "score", "validation", "cost"), [_card_cells(card) for card in cards])
        yield ""
        yield from _notes(data)
    for found in data.diagnoses:
        yield f"- **{found.kind.value}.** {escaped(found.evidence)} {escaped(found.advice)}"
    for title, table in (("The front", front_table(data)), ("Baselines", baselines_table(data))):
        if table.rows:
            yield from ("", f"## {title}", "")
            yield from _listed(table)
    if text := answers.rank_text(data):
        yield from ("", "## Rank", "", escaped(text))
    if text := answers.growth_text(data):
        yield from ("", "## More trials?", "", escaped(text))


def _card_cells(card: answers.Card) -> tuple[str, ...]:
    cost = "; ".join(f"{name}: {value}" for name, value in card.facts)
    return (" · ".join(card.rules), str(card.row.number), " ".join(card.big), card.second, cost)


def _notes(data: ReportData) -> Iterator[str]:
    for pair in answers.comparisons(data):
        verdict = "a difference beyond the noise" if pair.gap.is_clear else "they can't be told apart"
        gap = escaped(answers.gap_text(data, pair.gap))
        yield f"- Trial {pair.one.number} against trial {pair.other.number}: {gap}, {verdict}."
    if text := answers.flattery_text(data):
        yield f"- {escaped(text)}"
    for found in data.confirmations:
        yield f"- Trial {found.number} trained anew, {escaped(answers.confirmation_text(data, found))}."


def _listed(table: Table) -> Iterator[str]:
    head = tuple(name for name, _ in table.head if name != "State")
    yield from _table(head, [(row.mark, *(cell.text for cell in cells)) for row, cells in table.rows])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for cells in (head, ["---"] * len(head), *rows):
        texts = cells if cells[0] == "---" else [escaped(cell) for cell in cells]
        yield f"| {' | '.join(texts)} |"
