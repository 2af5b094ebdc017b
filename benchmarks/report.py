"""Put what the benchmarks printed into docs/benchmarks.md and docs/performance.md.

A block of code after a line ``<!-- NAME.txt -->`` holds ``results/NAME.txt``.

    python benchmarks/report.py            # after a file in results/ has changed
    python benchmarks/report.py --check    # only say whether the page is up to date
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGES = [HERE.parent / "docs" / name for name in ("benchmarks.md", "performance.md")]
BLOCK = re.compile(r"(?<=<!-- )(\S+\.txt)( -->\n```\n).*?(?=\n```)", re.DOTALL)


def refreshed(page: str) -> str:
    """A page with the present files."""
    text = lambda name: (HERE / "results" / name).read_text().rstrip()  # noqa: E731
    return BLOCK.sub(lambda found: found[1] + found[2] + text(found[1]), page)


def main(arguments: list[str]) -> int:
    for page in PAGES:
        text = page.read_text()
        if text == refreshed(text):
            continue
        if arguments == ["--check"]:
            return 1
        page.write_text(refreshed(text))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
