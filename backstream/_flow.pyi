from typing import final

@final
class BudgetShare:
    @property
    def used_bytes(self) -> int: ...

@final
class WindowBudget:
    def __init__(self, total_bytes: int) -> None: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def used_bytes(self) -> int: ...
