"""What the validator found: errors and warnings that name their items, with what was measured."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

LEVELS = ("error", "warning")
# Item ids that a printed line names; the JSON names all.
SHOWN_ITEMS = 4


@dataclass(frozen=True)
class Finding:
    """level: "error" or "warning". check: which rule. items: the ids of the items that it is about, all of them."""

    level: str
    check: str
    message: str
    items: tuple[str, ...] = ()

    def line(self) -> str:
        shown = ", ".join(self.items[:SHOWN_ITEMS])
        more = len(self.items) - SHOWN_ITEMS
        where = f" [{shown}{f' and {more} more' if more > 0 else ''}]" if self.items else ""
        return f"{self.level}: {self.check}: {self.message}{where}"


@dataclass
class Report:
    """All findings about one benchmark. measures: numbers behind them. thresholds: what they were judged by."""

    name: str
    folder: str
    items: int = 0
    clips: int = 0
    findings: list[Finding] = field(default_factory=list)
    measures: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)

    def add(self, level: str, check: str, message: str, items: Sequence[str] = ()) -> None:
        self.findings.append(Finding(level, check, message, tuple(items)))

    def count(self, level: str) -> int:
        return sum(finding.level == level for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "folder": self.folder,
            "items": self.items,
            "clips": self.clips,
            "errors": self.count("error"),
            "warnings": self.count("warning"),
            "findings": [
                {"level": f.level, "check": f.check, "message": f.message, "items": list(f.items)}
                for f in self.findings
            ],
            "measures": self.measures,
            "thresholds": self.thresholds,
        }

    def lines(self, per_check: int = 20) -> list[str]:
        """Text for people: errors first, of each check the first `per_check`, and how many more there are."""
        lines, seen = [], Counter[tuple[str, str]]()
        for finding in sorted(self.findings, key=lambda finding: LEVELS.index(finding.level)):
            seen[finding.level, finding.check] += 1
            if seen[finding.level, finding.check] <= per_check:
                lines.append(finding.line())
        for (level, check), count in seen.items():
            if count > per_check:
                lines.append(f"{level}: {check}: {count - per_check} more; --json FILE has them all")
        return lines
