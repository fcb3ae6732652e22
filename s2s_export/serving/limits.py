"""What a request may ask for, and what the server allows itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import InvalidOption
from ..runtime.decoding import GenerationOptions
from ..runtime.text.tokenizer import check_text
from .failures import Refused


@dataclass(frozen=True)
class Limits:
    """max_body: bytes of a request; max_audio: of one that brings sound. max_texts: of a request. max_characters: of
    all its texts together.
    max_beams: beams or samples of a text. max_new_tokens: that a text may ask for; None for the model's own limit.
    timeout: seconds for a request, unless it asks for less. body_timeout: seconds to send its body in.
    drain_delay: seconds between "not ready" and the end of listening. drain_timeout: seconds for what is under way.
    """

    max_body: int = 2 << 20
    max_audio: int = 32 << 20
    max_texts: int = 256
    max_characters: int = 100_000
    max_beams: int = 16
    max_new_tokens: int | None = None
    timeout: float = 30.0
    body_timeout: float = 30.0
    drain_delay: float = 5.0
    drain_timeout: float = 30.0

    def __post_init__(self) -> None:
        wrong = []
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.startswith("drain") else 1e-3 if "timeout" in field.name else 1
            if value is not None and value < least:
                wrong.append(f"{field.name} is {value}, expected at least {least}")
        if wrong:
            raise InvalidOption("; ".join(wrong))

    def check_texts(self, texts: Any) -> None:
        """Raises Refused, and InputError for text that is not valid Unicode."""
        if len(texts) > self.max_texts:
            raise Refused(
                413, f"the request has {len(texts)} texts; expected at most {self.max_texts}; send it in parts"
            )
        for text in texts:
            check_text(text)  # before any library sees a lone surrogate
        n = sum(map(len, texts))
        if n > self.max_characters:
            raise Refused(
                413, f"the request has {n} characters; expected at most {self.max_characters}; send it in parts"
            )

    def check_given(self, options: Mapping[str, Any]) -> None:
        """Options as a client gives them, before the session reads them. Raises Refused for one that names a file."""
        if isinstance(options.get("terms"), str):
            raise Refused(400, "'terms' is a string, the name of a file for the command line; expected pairs of texts")

    def check_options(self, options: GenerationOptions) -> None:
        """Raises Refused."""
        if options.n_rows > self.max_beams:
            name = "num_beams" if options.num_beams > self.max_beams else "num_return_sequences"
            raise Refused(400, f"{name} is {getattr(options, name)}; this server allows at most {self.max_beams}")
        n = options.max_length - len(options.prompt)
        if self.max_new_tokens is not None and n > self.max_new_tokens:
            raise Refused(400, f"{n} new tokens were asked for; this server allows at most {self.max_new_tokens}")
