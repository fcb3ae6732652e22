"""Sound to segments in a thread, for a server: whoever waits for them is told, and may leave at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import S2SError, explain
from ..runtime.session import Session
from ..runtime.speech.formats import Transcript

Tell = Callable[[Any], None]  # of each segment, and at last of the transcript or an error
Stop = Callable[[], None]


def begin(session: Session, sound: Any, options: Mapping[str, Any], tell: Tell) -> Stop:
    """Transcribe in a thread that calls `tell`. Returns what ends it with the segment that it is at.

    The thread is a daemon: a server that ends does not wait for a segment that nobody wants.
    """
    stop = threading.Event()
    threading.Thread(target=hear, args=(session, sound, options, tell, stop), name="s2s-hear", daemon=True).start()
    return stop.set


def hear(session: Session, sound: Any, options: Mapping[str, Any], tell: Tell, stop: threading.Event) -> None:
    try:
        found = session.transcribe(sound, **options)
        for segment in found:
            if stop.is_set():
                break
            tell(segment)
        tell(found.so_far())
    except Exception as error:
        tell(error if isinstance(error, S2SError) else S2SError(explain(error)))


def is_last(told: Any) -> bool:
    """Whether nothing follows."""
    return isinstance(told, (Transcript, BaseException))
