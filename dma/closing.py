"""What is closed at the end of a block.

Does not do: say what closing means, or whether it may be done twice.
"""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """`with` whose end calls `close`, however it comes."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
