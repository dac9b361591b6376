"""Rows of text as aligned columns, and sizes in words: what several commands print alike.

print(table([("run", "size"), ("quickstart", in_bytes(1_300_000))]))
"""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows as lines; a column is as wide as its widest cell, the last as it comes."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(n) for cell, n in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def in_bytes(n: float) -> str:
    """Returns "12 B", "1.3 MB": powers of 1,000, as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
