"""A benchmark's records, one JSON object a line: an interrupted run goes on from them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """All that are stored; none where the file is not there yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add_records(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
