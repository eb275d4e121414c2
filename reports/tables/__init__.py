"""The papers' tables beside our own numbers: run folders -> small records -> tables and pages.

tables.json declares the tables, their rows in order, and the claims.
"""

from pathlib import Path
from typing import Any

from runs.files import read_json

DECLARED: dict[str, Any] = read_json(Path(__file__).parent / "tables.json")
TABLES: dict[str, dict[str, Any]] = DECLARED["tables"]
for _table in TABLES.values():  # what several have in common stands there once, under a name
    for _part in ("blocks", "notes", "questions"):
        _found = _table.get(_part, ())
        _table[_part] = [DECLARED[_part].get(str(each), each) for each in _found]
    _table.setdefault("paper", {})
