"""The home of filters in SQL: what is told of a message by its facts, before it is read.

A hint.  It leaves nothing out that `domain.filters.matches` would let through,
and that has the last word.
"""

from collections.abc import Iterable
from typing import Any

from waypost.domain.filters import Filter
from waypost.store.filters import FIELDS
from waypost.store.postgres.database import is_text

_TEXT = "convert_from({facts}, 'UTF8')"

_NUL = r"'\u0000'"
"""As JSON spells it.  PostgreSQL makes no text of it: the facts that have it are let through."""


class Values(list[Any]):
    """What a statement is given: its parameters, as they are come by."""

    def add(self, value: Any) -> str:
        """How the statement names a value."""
        self.append(value)
        return f"${len(self)}"

    def among(self, texts: Iterable[str]) -> str:
        """The condition that something is one of these."""
        return f"= ANY({self.add(sendable(texts))}::text[])"

    def prefilter(self, wanted: Filter, *, facts: str) -> str:
        """Conditions on the column `facts`, to be put behind others."""
        text = _TEXT.format(facts=facts)
        told = " AND ".join(self._told(wanted, f"{text}::json"))
        if not told:
            return ""
        return f" AND CASE WHEN strpos({text}, {_NUL}) > 0 THEN true ELSE {told} END"

    def _told(self, wanted: Filter, facts: str) -> Iterable[str]:
        for field, path in FIELDS.items():
            if allowed := getattr(wanted, field):
                keys = ",".join(path)
                yield f"{facts} #>> '{{{keys}}}' {self.among(allowed)}"
        if wanted.labels:
            labels = f"json_array_elements_text({facts} -> 'labels')"
            among = self.among(wanted.labels)
            yield f"EXISTS (SELECT 1 FROM {labels} AS l (label) WHERE label {among})"
        url = f"{facts} ->> 'url'"
        if wanted.hosts:
            yield self._has_any(f'lower(({url}) COLLATE "C")', wanted.hosts)
        if wanted.paths:  # a path may be asked for as it reads once it is decoded
            yield f"(strpos({url}, '%') > 0 OR {self._has_any(url, wanted.paths)})"

    def _has_any(self, text: str, parts: Iterable[str]) -> str:
        of = self.add(sendable(parts))
        some = f"unnest({of}::text[]) AS p (part)"
        return f"EXISTS (SELECT 1 FROM {some} WHERE strpos({text}, part) > 0)"


def sendable(texts: Iterable[str]) -> list[str]:
    """Those of the texts that PostgreSQL can be sent; nothing has another as its name."""
    return [text for text in sorted(texts) if is_text(text)]
