"""Marian's recurrent models (`--type s2s` and `amun`): 1409.0473 as Nematus has it (1703.04357), with GRU cells.

A decoder step is a conditional GRU: a first cell reads the last token, its state asks the attention, a second cell
reads what was found, more cells go on without an input (deep transition), and higher layers follow. Marian's GRU is
torch's: the bias of the candidate is inside the product with the reset gate only for cells that read no token.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ...errors import CheckpointError, UnsupportedModel
from .weights import Weights

TYPES = ("s2s", "amun")
# Options whose other values are other models, with the values that are read; the first is the default.
EXPECTED: dict[str, tuple[Any, ...]] = {
    "enc-cell": ("gru",),
    "dec-cell": ("gru",),
    "enc-type": ("bidirectional", "bi-unidirectional"),
    "enc-cell-depth": (1,),
    "dec-cell-high-depth": (1,),
    "layer-normalization": (False,),
    "lemma-dim-emb": (0,),
    "factors-combine": ("sum",),
}
MOST = 100  # layers or cells
NEVER = -1e4  # its exp is 0 in fp32, and fp16 holds it
_GRU = ("U", "Ux", "W", "Wx", "b", "bx")
AMUN = {
    **{f"decoder_cell1_{part}": f"decoder_{part}" for part in _GRU},
    **{f"decoder_cell2_{part}": f"decoder_{part}_nl" for part in ("U", "Ux", "b", "bx")},
    "decoder_cell2_W": "decoder_Wc",
    "decoder_cell2_Wx": "decoder_Wcx",
    **{
        f"decoder_ff_logit_l1_{letter}{i}": f"ff_logit_{name}_{letter}"
        for i, name in enumerate(("prev", "lstm", "ctx"))
        for letter in "Wb"
    },
    "decoder_ff_logit_l2_W": "ff_logit_W",
    "decoder_ff_logit_l2_b": "ff_logit_b",
    "decoder_ff_state_W": "ff_state_W",
    "decoder_ff_state_b": "ff_state_b",
    "decoder_Wemb": "Wemb_dec",
    "encoder_Wemb": "Wemb",
    **{f"encoder_bi{way}_{part}": f"encoder{way}_{part}" for way in ("", "_r") for part in _GRU},
}


class Memory(NamedTuple):
    """states [B,S,2U], mask [B,S]."""

    states: Tensor
    mask: Tensor


class State(NamedTuple):
    """states [R,S,2U], keys [R,S,2U] the attention's projection of them, mask [R,S], hidden [R,L,U]."""

    states: Tensor
    keys: Tensor
    mask: Tensor
    hidden: Tensor


class MarianRecurrent(nn.Module):
    memory_class = Memory

    def __init__(self, sizes: tuple[int, int], width: int, units: int, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.skips = bool(options.get("skip", False))
        both = options.get("enc-type", "bidirectional") == "bidirectional"
        n_encoder, n_decoder = (int(options.get(name, 1)) for name in ("enc-depth", "dec-depth"))
        n_cells = int(options.get("dec-cell-base-depth", 2))
        self.source_embedding = nn.Embedding(sizes[0], width)
        self.target_embedding = nn.Embedding(sizes[1], width)
        # A stack for each direction: their layers read their own direction only, by weights that are zero elsewhere.
        self.encoder = nn.ModuleList(
            nn.GRU(width if i == 0 else 2 * units, units, bidirectional=True, batch_first=True)
            for i in range(n_encoder if both else 1)
        )
        self.upper = nn.ModuleList(
            nn.GRU(2 * units if i == 0 else units, units, batch_first=True) for i in range(0 if both else n_encoder - 1)
        )
        context = units if len(self.upper) else 2 * units
        self.start_layer = nn.Linear(context, units)
        self.query = nn.Linear(units, context, bias=False)
        self.key = nn.Linear(context, context)
        self.energy = nn.Linear(context, 1, bias=False)
        self.first = nn.GRUCell(width, units)
        self.second = nn.GRUCell(context, units)
        self.transitions = nn.ModuleList(nn.GRUCell(1, units) for _ in range(n_cells - 2))
        self.higher = nn.ModuleList(nn.GRUCell(units, units) for _ in range(n_decoder - 1))
        self.readout = nn.Linear(width + units + context, width)
        self.output = nn.Linear(width, sizes[1])
        self.config: Any = SimpleNamespace()

    def encode(self, input_ids: Tensor, source_mask: Tensor) -> Memory:
        x, lengths, size = self.source_embedding(input_ids), source_mask.sum(1), input_ids.shape[1]
        for stack in (self.encoder, self.upper):
            for i, layer in enumerate(stack):
                packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                found, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=size)
                x = found + x if self.skips and i > 0 else found
        return Memory(x, source_mask)

    def start(self, memory: Memory) -> State:
        weights = memory.mask.to(memory.states.dtype)[..., None]
        mean = (memory.states * weights).sum(1) / weights.sum(1)
        first = torch.tanh(self.start_layer(mean))
        hidden = torch.stack([first] * (1 + len(self.higher)), 1)
        return State(memory.states, self.key(memory.states), memory.mask, hidden)

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State, Tensor]:
        x = self.target_embedding(token)
        h = self.first(x, state.hidden[:, 0])
        energies = self.energy(torch.tanh(state.keys + self.query(h)[:, None]))[..., 0]
        weights = (energies + torch.where(state.mask.bool(), 0.0, -1e9)).softmax(-1)  # [R,S]
        context = (weights[:, None] @ state.states)[:, 0]
        h = self.second(context, h)
        for cell in self.transitions:
            h = cell(torch.zeros_like(h[:, :1]), h)
        hidden = [h]
        for i, cell in enumerate(self.higher, start=1):
            found = cell(h, state.hidden[:, i])
            hidden.append(found)
            h = found + h if self.skips else found
        logits = self.output(torch.tanh(self.readout(torch.cat([x, h, context], 1))))
        return logits, State(*state[:3], torch.stack(hidden, 1)), weights[:, None, None]


def build(path: Path, options: Mapping[str, Any], tensors: Mapping[str, Tensor], end: int) -> MarianRecurrent:
    """tensors: by Marian's names, [in, out]. Raises CheckpointError, UnsupportedModel."""
    for name, known in EXPECTED.items():
        if (found := options.get(name, known[0])) not in known:
            shown = " or ".join(repr(value) for value in known)
            raise UnsupportedModel(
                f"{path}: Marian's option {name} is {found!r}; expected {shown} for {options['type']}"
            )
    for name, least in (("enc-depth", 1), ("dec-depth", 1), ("dec-cell-base-depth", 2)):
        value = options.get(name, least)
        if not isinstance(value, int) or not least <= value <= MOST:
            raise UnsupportedModel(f"{path}: Marian's option {name} is {value!r}; expected {least} to {MOST}")
    reader = _Reader(path, tensors, is_amun=options["type"] == "amun")
    is_shared = bool(options.get("tied-embeddings-all") or options.get("tied-embeddings-src"))
    sides = ("Wemb", "Wemb") if is_shared else ("encoder_Wemb", "decoder_Wemb")
    source, target = (reader.take(name) for name in sides)
    units = reader.take("decoder_ff_state_W").shape[1]
    if target.shape[1] != source.shape[1]:
        raise CheckpointError(f"{path}: its embeddings have other widths on both sides; restore the model")
    # One more token, whose embedding is zero, begins every target; and is never chosen.
    model = MarianRecurrent((len(source), len(target) + 1), source.shape[1], units, options)
    with torch.no_grad():
        _fill(model, reader, source, target)
    reader.weights.ignore(("decoder_c_tt", "special:model.yml"))
    reader.weights.refuse_unread()
    model.config = SimpleNamespace(
        vocab_size=len(target) + 1,
        source_vocabulary_size=len(source),
        max_target_length=None,
        pad_token_id=min(len(source) - 1, len(target)),
        bos_token_id=len(target),
        eos_token_id=end,
    )
    return model.eval()


class _Reader:
    def __init__(self, path: Path, tensors: Mapping[str, Tensor], *, is_amun: bool) -> None:
        self.weights = Weights(path, tensors)
        self._amun = is_amun

    def name(self, name: str) -> str:
        return AMUN.get(name, name) if self._amun else name

    def has(self, name: str) -> bool:
        return self.name(name) in self.weights

    def take(self, name: str) -> Tensor:
        """Vectors are [1, n] in the file."""
        value = self.weights.take(self.name(name))
        return value[None] if value.dim() == 1 else value

    def copy(self, parameter: Tensor, *names: str, transposed: bool = False) -> None:
        """Several are side by side."""
        value = torch.cat([self.take(name) for name in names], -1)
        value = value.T if transposed else value.reshape(-1)
        if value.shape != parameter.shape:
            raise CheckpointError(
                f"{self.weights.path}: {self.name(names[0])} has another shape than its options say; restore the model"
            )
        parameter.copy_(value)

    def linear(self, layer: nn.Linear, weight: str, bias: str | None) -> None:
        self.copy(layer.weight, weight, transposed=True)
        if bias is not None:
            self.copy(layer.bias, bias)

    def gru(
        self, cell: nn.Module, prefix: str, suffix: str = "", columns: slice | None = None, *, final: bool = False
    ) -> None:
        """columns: those of the input that this layer reads, the others' weights are zero. final: see the top."""
        weight = getattr(cell, f"weight_ih{suffix}")
        read = weight if columns is None else weight[:, columns]
        if self.has(f"{prefix}_W"):
            if columns is not None:
                weight.zero_()
            self.copy(read, f"{prefix}_W", f"{prefix}_Wx", transposed=True)
        else:  # a transition has no input
            weight.zero_()
        self.copy(getattr(cell, f"weight_hh{suffix}"), f"{prefix}_U", f"{prefix}_Ux", transposed=True)
        inner, outer = (getattr(cell, f"bias_{name}{suffix}") for name in (("hh", "ih") if final else ("ih", "hh")))
        outer.zero_()
        self.copy(inner, f"{prefix}_b", f"{prefix}_bx")


def _fill(model: MarianRecurrent, reader: _Reader, source: Tensor, target: Tensor) -> None:
    def grown(table: Tensor) -> Tensor:
        return torch.cat([table, table.new_zeros(1, table.shape[1])])

    model.source_embedding.weight.copy_(source)
    model.target_embedding.weight.copy_(grown(target))
    for i, layer in enumerate(model.encoder, start=1):
        units = layer.weight_hh_l0.shape[1]  # type: ignore[index]
        for way, suffix, columns in (("", "_l0", slice(units)), ("_r", "_l0_reverse", slice(units, None))):
            prefix = f"encoder_bi{way}" + (f"_l{i}_cell1" if i > 1 else "")
            reader.gru(layer, prefix, suffix, columns if i > 1 else None)
    for i, layer in enumerate(model.upper, start=2):
        reader.gru(layer, f"encoder_l{i}_cell1", "_l0")
    reader.linear(model.start_layer, "decoder_ff_state_W", "decoder_ff_state_b")
    reader.linear(model.query, "decoder_W_comb_att", None)
    reader.linear(model.key, "decoder_Wc_att", "decoder_b_att")
    reader.linear(model.energy, "decoder_U_att", None)
    reader.gru(model.first, "decoder_cell1")
    reader.gru(model.second, "decoder_cell2", final=True)
    for i, cell in enumerate(model.transitions, start=3):
        reader.gru(cell, f"decoder_cell{i}", final=True)
    for i, cell in enumerate(model.higher, start=2):
        reader.gru(cell, f"decoder_l{i}_cell1")
    parts = [reader.take(f"decoder_ff_logit_l1_W{i}").T for i in range(3)]
    biases = [reader.take(f"decoder_ff_logit_l1_b{i}").reshape(-1) for i in range(3)]
    model.readout.weight.copy_(torch.cat(parts, 1))
    model.readout.bias.copy_(sum(biases))  # type: ignore[arg-type]
    own = "decoder_ff_logit_l2_W"
    model.output.weight.copy_(grown(reader.take(own).T if reader.has(own) else target))
    model.output.bias[-1] = NEVER
    model.output.bias[:-1] = reader.take("decoder_ff_logit_l2_b").reshape(-1)
