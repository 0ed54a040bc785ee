"""Each row of the table of raw cases (`table/README.md`) is a test; all are played at once through one tunnel."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from tests.http.play import Player
from tests.http.table import Row, load

ROWS = load()


class Played:
    def __init__(self, rows: list[Row]) -> None:
        player = Player(rows)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self.verdicts = runner.run(player.run())
        self.strays = player.strays


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Played:
    """The rows of the tests that were selected, played."""
    selected = {item.callspec.params["row"].id for item in request.session.items if "row" in _params(item)}
    return Played([row for row in ROWS if row.id in selected])


def _params(item: pytest.Item) -> dict:
    return (
        item.callspec.params
        if hasattr(item, "callspec") and item.path == item.config.rootpath.joinpath(__file__)
        else {}
    )


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.kind}-{row.id}" for row in ROWS])
def test_the_row_holds(row: Row, played: Played) -> None:
    assert not played.verdicts[row.id]


def test_nothing_reached_the_upstream_that_belongs_to_no_row(played: Played) -> None:
    assert not played.strays
