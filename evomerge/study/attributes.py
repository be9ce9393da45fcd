"""What is kept with a study as a whole: Optuna's attributes of a study, of any length."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from evomerge.study.schema import insert_new, texts

# Optuna's column is a TEXT, which in MySQL ends after 64 KiB. A space over many layers may take more.
LONGEST = 60_000
# In the place of a value that is in our own table.
_ELSEWHERE = "evomerge:text"


class Attributes:
    """Reads and writes them.

    Args:
        storage: Optuna's storage object.
    """

    def __init__(self, storage: Any, engine: sa.Engine) -> None:
        self._storage = storage
        self._engine = engine
        self._longest = LONGEST if engine.dialect.name == "mysql" else None

    def write(self, study: int, key: str, value: Any) -> None:
        """Keep a value, which JSON can hold, in the place of an earlier one."""
        text = json.dumps(value)
        if self._longest is not None and len(text) > self._longest:
            with self._engine.begin() as connection:
                insert_new(connection, texts, [{"study_id": study, "key": key, "value": text}])
                connection.execute(
                    sa.update(texts).where(texts.c.study_id == study, texts.c.key == key).values(value=text)
                )
            value = {_ELSEWHERE: key}
        self._storage.set_study_user_attr(study, key, value)

    def read(self, study: int) -> dict[str, Any]:
        """All of them."""
        found: dict[str, Any] = self._storage.get_study_user_attrs(study)
        moved = [key for key, value in found.items() if isinstance(value, dict) and set(value) == {_ELSEWHERE}]
        if moved:
            with self._engine.connect() as connection:
                rows = connection.execute(sa.select(texts.c.key, texts.c.value).where(texts.c.study_id == study))
                found.update({row.key: json.loads(row.value) for row in rows if row.key in moved})
        return found
