"""The port on which clients of the Wyoming protocol are answered, in the event loop of the HTTP server."""

from __future__ import annotations

import asyncio
import socket

from ...errors import InvalidOption
from ..calls import State
from . import events
from .dialogue import Dialogue

MOST_CONNECTIONS = 256


class WyomingServer:
    """listening: a socket at an address. Raises InvalidOption where no bundle transcribes, or where keys are asked for:
    the protocol has none."""

    def __init__(self, state: State, listening: socket.socket) -> None:
        if not any(model.session.speech is not None for model in state.models):
            raise InvalidOption(
                "--wyoming is for speech, and no bundle that is served transcribes; add a bundle of Whisper"
            )
        if state.api_keys:
            raise InvalidOption(
                "the Wyoming protocol has no keys, so its port would be open to everybody; leave out --wyoming or the "
                "API keys, or serve twice"
            )
        self._state = state
        self._listening = listening
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], Dialogue] = {}

    @property
    def port(self) -> int:
        return int(self._listening.getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(
            self._connected, sock=self._listening, limit=events.MOST_HEADER, start_serving=True
        )

    async def stop(self, timeout: float) -> None:
        """Take no more connections, end those that are idle, and give the others their time in seconds."""
        if self._server is not None:
            self._server.close()
        for task, dialogue in self._open.items():
            dialogue.is_last = True
            if not dialogue.is_busy:
                task.cancel()
        if self._open:
            await asyncio.wait(list(self._open), timeout=timeout)
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(list(self._open), timeout=1.0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._open) >= MOST_CONNECTIONS:
            text = f"{MOST_CONNECTIONS} clients are connected, and there is no room for more; come again later"
            events.write(writer, "error", {"text": text, "code": "overloaded"})
            writer.close()
            return
        dialogue = Dialogue(self._state, reader, writer)
        task = asyncio.ensure_future(dialogue.run())
        self._open[task] = dialogue
        task.add_done_callback(lambda done: self._open.pop(done, None))
