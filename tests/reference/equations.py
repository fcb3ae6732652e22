"""The reference models once more: the equations of their docstrings in numpy, for one source without padding.

Written from the papers' formulas, a token at a time, to hold the torch modules against. Slow and plain on purpose.
"""

from __future__ import annotations

import math

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def lstm_cell(x, h, c, w_ih, w_hh, b_ih, b_hh):
    i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_cell(x, h, w_ih, w_hh, b_ih, b_hh):
    (ir, iz, inew), (hr, hz, hnew) = np.split(w_ih @ x + b_ih, 3), np.split(w_hh @ h + b_hh, 3)
    r, z = sigmoid(ir + hr), sigmoid(iz + hz)
    return (1 - z) * np.tanh(inew + r * hnew) + z * h


class Weights:
    def __init__(self, model):
        self.config = model.config
        self.w = {name: value.double().numpy() for name, value in model.state_dict().items()}

    def linear(self, name, x):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    def cell(self, prefix, suffix, x, h, c):
        """One step of a cell whose parameters are `prefix.weight_ih` + suffix and so on; c is None of a GRU."""
        parameters = [self.w[f"{prefix}.{kind}{suffix}"] for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        return (gru_cell(x, h, *parameters), None) if c is None else lstm_cell(x, h, c, *parameters)

    def run(self, prefix, suffix, xs, units, with_cell):
        """A cell over a sequence from zero: all its h, and the last (h, c)."""
        h, c, hs = np.zeros(units), np.zeros(units) if with_cell else None, []
        for x in xs:
            h, c = self.cell(prefix, suffix, x, h, c)
            hs.append(h)
        return hs, (h, c)


def lstm(weights, source, target):
    U, L = weights.config.hidden_size, weights.config.encoder_layers
    xs = [weights.w["source_embedding.weight"][i] for i in (source[::-1] if weights.config.reverse_source else source)]
    states = []
    for layer in range(L):
        xs, last = weights.run("encoder", f"_l{layer}", xs, U, True)
        states.append(last)
    logits = []
    for token in target:
        x = weights.w["target_embedding.weight"][token]
        for layer in range(L):
            states[layer] = weights.cell("decoder", f"_l{layer}", x, *states[layer])
            x = states[layer][0]
        logits.append(weights.linear("output", x))
    return np.stack(logits), None


def gru(weights, source, target):
    U, L = weights.config.hidden_size, weights.config.decoder_layers
    xs = [weights.w["source_embedding.weight"][i] for i in source]
    for layer in range(weights.config.encoder_layers):
        xs, (last, _) = weights.run("encoder", f"_l{layer}", xs, U, False)
    c = np.tanh(weights.linear("summary", last))
    states = np.split(np.tanh(weights.linear("initial", c)), L)
    logits = []
    for token in target:
        y = weights.w["target_embedding.weight"][token]
        x = np.concatenate([y, c])
        for layer in range(L):
            states[layer] = x = weights.cell("decoder", f"_l{layer}", x, states[layer], None)[0]
        readout = weights.linear("readout", np.concatenate([x, y, c])).reshape(-1, 2).max(axis=1)
        logits.append(weights.linear("output", readout))
    return np.stack(logits), None


def attention(weights, source, target):
    config = weights.config
    U, L, with_cell = config.hidden_size, config.decoder_layers, config.cell == "lstm"
    xs = [weights.w["source_embedding.weight"][i] for i in source]
    for layer in range(config.encoder_layers):
        forward, _ = weights.run("encoder", f"_l{layer}", xs, U // 2, with_cell)
        backward, _ = weights.run("encoder", f"_l{layer}_reverse", xs[::-1], U // 2, with_cell)
        xs = [np.concatenate(pair) for pair in zip(forward, backward[::-1], strict=True)]
    annotations = np.stack(xs)
    states = [
        (h, np.zeros(U) if with_cell else None)
        for h in np.split(np.tanh(weights.linear("initial", annotations[0, U // 2 :])), L)
    ]
    logits, alignment = [], []
    for token in target:
        s = states[-1][0]
        if config.score == "additive":
            energies = np.array(
                [
                    weights.linear("energy", np.tanh(weights.linear("query", s) + weights.linear("key", h)))[0]
                    for h in annotations
                ]
            )
        else:
            energies = np.array([s @ (h if config.score == "dot" else weights.linear("key", h)) for h in annotations])
        a = softmax(energies)
        c = a @ annotations
        y = weights.w["target_embedding.weight"][token]
        x = np.concatenate([y, c])
        for layer in range(L):
            states[layer] = weights.cell(f"decoder.{layer}", "", x, *states[layer])
            x = states[layer][0]
        readout = weights.linear("readout", np.concatenate([x, y, c])).reshape(-1, 2).max(axis=1)
        logits.append(weights.linear("output", readout))
        alignment.append(a)
    return np.stack(logits), np.stack(alignment)[:, None, None]  # [T, L, H, S]


def transformer(weights, source, target):
    config, E = weights.config, weights.config.d_model

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * weights.w[f"{name}.weight"] + weights.w[f"{name}.bias"]

    def position(side, pos):
        if config.positions == "learned":
            return weights.w[f"{side}_positions.weight"][pos]
        return np.array([(math.cos if i % 2 else math.sin)(pos / 10000 ** ((i - i % 2) / E)) for i in range(E)])

    def embed(side, ids):
        return np.stack(
            [math.sqrt(E) * weights.w[f"{side}_embedding.weight"][i] + position(side, pos) for pos, i in enumerate(ids)]
        )

    def attend(name, x, memory, causal):
        q, k, v = (
            weights.linear(f"{name}.{part}", y) for part, y in (("query", x), ("key", memory), ("value", memory))
        )
        D, heads, all_weights = E // config.heads, [], []
        for h in range(config.heads):
            cut = slice(h * D, (h + 1) * D)
            scores = q[:, cut] @ k[:, cut].T / math.sqrt(D)
            if causal:
                scores = np.where(np.tril(np.ones_like(scores)) > 0, scores, -np.inf)
            all_weights.append(softmax(scores))
            heads.append(all_weights[-1] @ v[:, cut])
        return weights.linear(f"{name}.output", np.concatenate(heads, axis=-1)), np.stack(all_weights)

    def sublayer(name, x, function):
        if config.norm == "pre":
            return x + function(norm(name, x))
        return norm(name, x + function(x))

    def side(name, x, memory=None):
        alignment = []
        for n in range(config.decoder_layers if memory is not None else config.encoder_layers):
            layer, causal = f"{name}.{n}", memory is not None
            x = sublayer(
                f"{layer}.self_norm", x, lambda y, p=layer, c=causal: attend(f"{p}.self_attention", y, y, c)[0]
            )
            if memory is not None:

                def cross(y, p=layer):
                    mixed, w = attend(f"{p}.cross_attention", y, memory, False)
                    alignment.append(w)
                    return mixed

                x = sublayer(f"{layer}.cross_norm", x, cross)
            x = sublayer(
                f"{layer}.ff_norm",
                x,
                lambda y, p=layer: weights.linear(f"{p}.ff_out", np.maximum(0, weights.linear(f"{p}.ff_in", y))),
            )
        return (norm(f"{name}_norm", x) if config.norm == "pre" else x), alignment

    memory, _ = side("encoder", embed("source", source))
    states, alignment = side("decoder", embed("target", target), memory)
    return weights.linear("output", states), np.stack(alignment).transpose(2, 0, 1, 3)  # [L, H, T, S] -> [T, L, H, S]


MODELS = {"lstm": lstm, "gru": gru, "attention": attention, "transformer": transformer}
