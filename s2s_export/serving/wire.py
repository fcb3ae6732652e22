"""Messages between a server and its engine processes, over a socket that only the two have.

A message is a tuple whose first item says what it is; engine_process.py lists them. It is pickled, but for what each
side has of its own: the tokenizer, which options may hold for stop strings.
"""

from __future__ import annotations

import io
import pickle
import threading
from multiprocessing.connection import Connection
from typing import Any

from ..errors import S2SError
from ..runtime.session import Session

TOKENIZER = "tokenizer"


class Wire:
    """One end. `send` may be used by several threads. session: this side's own, once there is one."""

    def __init__(self, connection: Connection, session: Session | None = None) -> None:
        self.session = session
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, *message: Any) -> None:
        """Raises OSError where the other side has gone, and S2SError for what can't be sent."""
        file = io.BytesIO()
        try:
            _Pickler(file, self.session).dump(message)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise S2SError(f"this can't be handed to an engine process ({error}); serve with fewer workers") from error
        with self._sending:
            self._connection.send_bytes(file.getbuffer())

    def receive(self) -> tuple[Any, ...]:
        """Raises EOFError or OSError where the other side has gone."""
        message: tuple[Any, ...] = _Unpickler(io.BytesIO(self._connection.recv_bytes()), self.session).load()
        return message

    def close(self) -> None:
        with self._sending:  # else what is being sent might go to whoever gets the descriptor next
            self._connection.close()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, session: Session | None) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._tokenizer = session.tokenizer if session is not None and session.has_tokenizer else None

    def persistent_id(self, value: Any) -> str | None:
        return TOKENIZER if value is self._tokenizer and value is not None else None

    def reducer_override(self, value: Any) -> Any:
        """Errors with what they say: pickle would make them again of that, and some are made of other things."""
        if isinstance(value, S2SError):
            return _error, (type(value), str(value), vars(value))
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, session: Session | None) -> None:
        super().__init__(file)
        self._session = session

    def persistent_load(self, name: str) -> Any:
        assert self._session is not None and name == TOKENIZER
        return self._session.tokenizer


def _error(kind: type[S2SError], message: str, attributes: dict[str, Any]) -> S2SError:
    made = kind.__new__(kind)
    S2SError.__init__(made, message)
    vars(made).update(attributes)
    return made
