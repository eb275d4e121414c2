"""The papers' tables beside our own numbers: run folders -> small records -> tables and pages.

tables.json declares the tables, their rows in order, and the claims.
"""

from pathlib import Path
from typing import Any

from runs.files import read_json

DECLARED: dict[str, Any] = read_json(Path(__file__).parent / "tables.json")
TABLES: dict[str, dict[str, Any]] = DECLARED["tables"]
for _table in TABLES.values():  # a name stands for a declaration that several tables share
    for _part in ("blocks", "notes", "questions"):
        _entries = _table.get(_part, ())
        _table[_part] = [DECLARED[_part].get(str(entry), entry) for entry in _entries]
    _table.setdefault("paper", {})
