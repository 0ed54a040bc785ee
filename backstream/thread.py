"""An agent in a thread with an event loop of its own, for programs that are not asynchronous, notebooks among them.

The thread is a daemon, so that a program that forgets it still ends; what runs then is cut, by way of `atexit`.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import uvloop

if TYPE_CHECKING:
    from backstream.agent import Agent

__all__ = ["AgentThread"]

EXIT_SECONDS: Final = 5.0
"""How long the end of the program waits for the agent's."""


class AgentThread:
    """An agent that runs in its own thread; made by `Agent.start_in_thread`. Its methods may be called from any thread.

    As a context manager it is closed at the end: requests that run are cut, unless `stop` was called before.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._abandoned = False
        # Not `join`: interrupted, it takes a thread that runs for one that has ended (Python 3.11, 3.12).
        self._ended = threading.Event()
        self._started: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._thread = threading.Thread(
            target=self._run, name=f"backstream agent {agent.settings.client_id}", daemon=True
        )
        try:
            self._thread.start()
            self._started.result()
        except BaseException:
            # Its start failed, or the program gave up waiting for it (KeyboardInterrupt): perhaps before it had a loop.
            self._abandoned = True
            self._ask(False)
            if self._ended.wait(EXIT_SECONDS):
                self._thread.join()
            raise
        atexit.register(self._at_exit)

    def __repr__(self) -> str:
        return f"<AgentThread {self.agent.settings.client_id}>"

    @property
    def connected(self) -> bool:
        """Whether a session is ready for requests."""
        return self.agent.connected

    def wait_connected(self, timeout: float | None = None) -> None:
        """Waits until a session is ready for requests.

        timeout: seconds, None for no limit. Raises TimeoutError, and ConnectionFailed when the agent is closed before.
        """
        if self._loop is None or self._ended.is_set():
            raise RuntimeError("the agent does not run any more")
        future = asyncio.run_coroutine_threadsafe(self.agent.wait_connected(), self._loop)
        try:
            future.result(timeout)
        finally:
            future.cancel()

    def stop(self) -> None:
        """Drains the agent within its `drain_timeout`, closes it and waits for its thread.

        KeyboardInterrupt during that closes it at once, and is raised.
        """
        self._end(drain=True)

    def close(self) -> None:
        """Ends at once: requests that run are cut."""
        self._end(drain=False)

    def __enter__(self) -> AgentThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _end(self, *, drain: bool) -> None:
        if threading.current_thread() is self._thread:
            raise RuntimeError("an agent's own thread cannot wait for its end: use await agent.drain() there")
        self._ask(drain)
        try:
            self._ended.wait()
            self._thread.join()
        except BaseException:
            self._ask(False)
            self._ended.wait(EXIT_SECONDS)
            raise
        finally:
            atexit.unregister(self._at_exit)

    def _ask(self, drain: bool) -> None:
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._asked, drain)
            except RuntimeError:
                pass  # it is closed: the thread has ended, or is about to

    def _at_exit(self) -> None:
        self._ask(False)
        self._ended.wait(EXIT_SECONDS)

    # --- in the thread ---

    def _run(self) -> None:
        try:
            self._run_loop()
        finally:
            self._ended.set()

    def _run_loop(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            self._loop = runner.get_loop()
            try:
                runner.run(self._serve())
            except asyncio.CancelledError:
                pass
            finally:
                if not self._started.done():
                    self._started.set_exception(RuntimeError("the agent's thread ended before it was started"))

    async def _serve(self) -> None:
        self._main = asyncio.current_task()
        if self._abandoned:
            return
        try:
            await self.agent.start()
        except BaseException as error:
            await self.agent.close()
            if isinstance(error, asyncio.CancelledError):
                raise
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self.agent.wait_closed()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _asked(self, drain: bool) -> None:
        if not self._started.done() and self._main is not None:
            self._main.cancel()
            return
        work: Any = self.agent.drain() if drain else self.agent.close()
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
