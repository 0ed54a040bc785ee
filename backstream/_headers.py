"""Header fields for people: a mapping by name, beside the pairs as they came."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from backstream._messages import Fields

__all__ = ["Headers"]


class Headers(Mapping[str, str]):
    """Header fields by name, without regard to case; a name that comes again has its values joined by ", "."""

    def __init__(self, fields: Fields) -> None:
        self.raw = fields
        """(name in lower case, value) pairs of bytes, as they came."""

    def __getitem__(self, name: str) -> str:
        values = self.get_all(name)
        if not values:
            raise KeyError(name)
        return ", ".join(values)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name.decode("ascii") for name, _ in self.raw))

    def __len__(self) -> int:
        return len({name for name, _ in self.raw})

    def __repr__(self) -> str:
        return f"Headers({[(name.decode('ascii'), value.decode('latin-1')) for name, value in self.raw]})"

    def get_all(self, name: str) -> list[str]:
        """Every value of a name, in order (for Set-Cookie, which can't be joined)."""
        wanted = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for key, value in self.raw if key == wanted]
