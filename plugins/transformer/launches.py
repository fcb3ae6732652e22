"""Which kernel of a model serves which sizes, over which grid. The arguments come from structures.py.

Letters as in parameters.h.
"""

from __future__ import annotations

from s2s_export.errors import BuildError

from ..beam_search.launches import MOST_LISTS
from ..common.nodes import MAX_BEAMS, MAX_HEAD_SIZE, Launch, block_threads, width
from .structures import (
    BeginParameters,
    CellParameters,
    ContextParameters,
    CrossAttentionParameters,
    CrossBlockParameters,
    CrossWeightsParameters,
    EmbedParameters,
    EncoderAttentionParameters,
    HeadOutputParameters,
    HeadParameters,
    NormParameters,
    PickParameters,
    ProductParameters,
    ScoreParameters,
    SelfAttentionParameters,
    SelfBlockParameters,
    WindowParameters,
)

ELEMENTS = ("fp16", "bf16", "int8")  # of weights; activations are of fp16 beside int8
TILE = 16  # outputs and inputs of a fragment; all widths are multiples of it
ROWS = 8  # rows that a fragment meets
WARPS = 8  # of a block of skinny_product
MOST_SKINNY_ROWS = 32  # beyond that, reading the weights again for each eight rows costs more than tiles do
NORM_WIDTHS = (512, 1024, 2048)  # of the norms that skinny_product computes itself
MOST_BLOCKS = 512  # of skinny_product along the outputs: each computes the norm of its rows
FEW_BLOCKS = 128  # a product with fewer shares each tile among more warps, so that a large GPU has work everywhere
CROSS_ROWS = (1, 4, 8)
MOST_CROSS_INPUTS = 1024  # of the query's product in cross_block
MOST_BLOCK_POSITIONS = 512  # of a source that one block reads; longer ones, as Whisper's 1,500, are split
SPLIT_POSITIONS, MOST_SPLITS = 192, 16
BLOCK_THREADS = 256
GROUP_OUTPUTS = WARPS * TILE  # of a block of head_candidates at a time
MOST_CANDIDATES = 32  # of a row: a lane each
GATES = {"lstm": 4, "gru": 3}
CELL_GROUPS = 4  # of eight rows, of a block of recurrent_cell where there are more than eight
CONTEXT_COLUMNS = 64  # of a block of source_context
MOST_GROUPS = 32  # of a block, for whose outputs it keeps a bit each


def folder(element: str) -> str:
    """The folder of plugins/ with the kernels for weights of an element."""
    return "transformer_int8" if element == "int8" else "transformer"


def any_kernel(element: str) -> str:
    """One that every model uses."""
    return f"norm_rows_{element}"


def is_skinny(rows: int) -> bool:
    return rows <= MOST_SKINNY_ROWS


def norms_itself(rows: int, inputs: int) -> bool:
    """Whether a product of these sizes can begin with its rows' norm; else `norm_rows` comes first."""
    return is_skinny(rows) and inputs <= NORM_WIDTHS[-1]


def fuses_attention(rows: int, width: int) -> bool:
    """Whether attention and the products around it are one launch, for so many rows of a stream of that width. With
    more rows, every block of the next product would read too many parts."""
    return is_skinny(rows) and width <= MOST_CROSS_INPUTS


def splits(outputs: int, inputs: int) -> int:
    """Warps that share the inputs of a tile of outputs."""
    found = 1
    while found < WARPS and 2 * found <= inputs // TILE and outputs // TILE * found // WARPS < FEW_BLOCKS:
        found *= 2
    return found


def product(element: str, given: ProductParameters) -> Launch:
    """Sets `splits` as well."""
    _check(element)
    n_tiles = given.outputs // TILE
    if given.outputs % TILE or given.inputs % TILE:
        raise BuildError(
            f"a product of {given.inputs} inputs and {given.outputs} outputs; expected multiples of {TILE}; "
            "fill its weight with zeros"
        )
    if not is_skinny(given.rows):
        if given.norm_weight:
            raise BuildError(f"a norm before a product of {given.rows} rows; expected norm_rows before it; queue that")
        return Launch(f"tiled_product_{element}", (-(-n_tiles // 8), -(-given.rows // 64), 1), 128)
    given.splits = splits(given.outputs, given.inputs)
    blocks = min(-(-n_tiles * given.splits // WARPS), MOST_BLOCKS)
    name = f"skinny_product_{element}"
    if given.norm_weight:
        fitting = [size for size in NORM_WIDTHS if given.inputs <= size]
        if not fitting:
            raise BuildError(
                f"a norm of {given.inputs} inputs before a product; expected at most {NORM_WIDTHS[-1]}; queue norm_rows"
            )
        name += f"_norm{fitting[0]}"
    return Launch(name, (blocks, -(-given.rows // ROWS), 1), 32 * WARPS)


def finish_rows(element: str, given: ProductParameters) -> Launch:
    """What follows a product that a library computed."""
    _check(element)
    outputs = given.outputs // 2 if given.gated else given.outputs
    return Launch(f"finish_rows_{element}", (given.rows, -(-outputs // BLOCK_THREADS), 1), BLOCK_THREADS)


def candidate_lists(rows: int, inputs: int, vocabulary: int, candidates: int) -> int:
    """Lists of a row that `head_candidates` makes; 0 where it can't serve these sizes."""
    groups = -(-vocabulary // GROUP_OUTPUTS)
    lists = min(groups, MOST_LISTS)
    fits = norms_itself(rows, inputs) and candidates <= MOST_CANDIDATES
    return lists if fits and -(-groups // lists) <= MOST_GROUPS else 0


def head_candidates(element: str, given: HeadParameters) -> Launch:
    _check(element)
    product = given.product
    lists = candidate_lists(product.rows, product.inputs, product.limit, given.candidates)
    if given.lists != lists or not lists or product.outputs % TILE or product.inputs % TILE:
        raise BuildError(
            f"{given.candidates} candidates of {product.limit} tokens for {product.rows} rows of {product.inputs} in "
            f"{given.lists} lists; expected up to {MOST_CANDIDATES}, {MOST_SKINNY_ROWS} and {NORM_WIDTHS[-1]} in "
            f"{lists}; queue the product and top_of_slices"
        )
    width_of_norm = next(size for size in NORM_WIDTHS if product.inputs <= size) if product.norm_weight else 0
    name = f"head_candidates_{element}_norm{width_of_norm}"
    return Launch(name, (lists, -(-product.rows // ROWS), 1), 32 * WARPS)


def norm(element: str, given: NormParameters) -> Launch:
    _check(element)
    return Launch(f"norm_rows_{element}", (-(-given.rows // 4), 1, 1), 128)


def embed(element: str, given: EmbedParameters) -> Launch:
    _check(element)
    return Launch(f"embed_rows_{element}", (given.rows, 1, 1), 128)


def windows(element: str, given: WindowParameters, n_sources: int) -> Launch:
    """The rows of a convolution. Input in fp32 lies channel by channel, input in the element position by position."""
    _check(element)
    if given.inputs % TILE or given.inputs < given.size * given.channels:
        raise BuildError(
            f"windows of {given.size} positions of {given.channels} channels in rows of {given.inputs}; expected a "
            f"multiple of {TILE} that holds them; fill rows with zeros"
        )
    name = f"{'input_' if given.by_channel else ''}windows_{element}"
    return Launch(name, (n_sources * given.positions, 1, 1), 128)


def self_attention(element: str, given: SelfAttentionParameters) -> Launch:
    _check(element, given.head_size, given.beams)
    grid = (given.beams, given.heads, given.sources)
    return Launch(f"self_attention_{element}_w{width(given.head_size)}", grid, block_threads(given.capacity))


def self_block(element: str, given: SelfBlockParameters) -> Launch:
    attention = given.attention
    _check(element, attention.head_size, attention.beams)
    _check_output(given.output)
    grid = (attention.beams, attention.heads, attention.sources)
    return Launch(f"self_block_{element}_w{width(attention.head_size)}", grid, BLOCK_THREADS)


def cross_block(element: str, given: CrossBlockParameters) -> Launch:
    attention = given.attention
    _check(element, attention.head_size, attention.beams)
    _check_output(given.output)
    if given.query.inputs % TILE or given.query.inputs > MOST_CROSS_INPUTS or not given.query.norm_weight:
        raise BuildError(
            f"cross-attention with a query of {given.query.inputs} inputs; expected a norm of a multiple of {TILE} up "
            f"to {MOST_CROSS_INPUTS}; queue a product and cross_attention"
        )
    rows = next((n for n in CROSS_ROWS if attention.beams <= n), CROSS_ROWS[-1])
    grid = (-(-attention.beams // rows), attention.heads, attention.sources)
    return Launch(f"cross_block_{element}_r{rows}_w{width(attention.head_size)}", grid, BLOCK_THREADS)


def cross_splits(length: int) -> int:
    """Blocks among which a source's positions are split."""
    return 1 if length <= MOST_BLOCK_POSITIONS else min(-(-length // SPLIT_POSITIONS), MOST_SPLITS)


def cross_attention(element: str, given: CrossAttentionParameters) -> Launch:
    """Sets `splits` as well. With several, `merge_cross` is to follow, and `parts` is its memory."""
    _check(element, given.head_size, given.beams)
    given.splits = cross_splits(given.length)
    rows = next((n for n in CROSS_ROWS if given.beams <= n), CROSS_ROWS[-1])
    grid = (-(-given.beams // rows) * given.splits, given.heads, given.sources)
    name = f"cross_attention_{element}_r{rows}_w{width(given.head_size)}"
    return Launch(name, grid, block_threads(-(-given.length // given.splits)))


def merge_cross(element: str, given: CrossAttentionParameters) -> Launch:
    _check(element, given.head_size, given.beams)
    return Launch(f"merge_cross_{element}", (given.beams, given.heads, given.sources), 128)


def cross_weights(element: str, given: CrossWeightsParameters) -> Launch:
    attention = given.attention
    _check(element, attention.head_size, attention.beams)
    return Launch(f"cross_weights_{element}", (given.n_heads, attention.sources * attention.beams, 1), BLOCK_THREADS)


def encoder_attention(element: str, given: EncoderAttentionParameters) -> Launch:
    _check(element, given.head_size)
    grid = (-(-given.length // 64), given.heads, given.sources)
    return Launch(f"encoder_attention_{element}_w{width(given.head_size)}", grid, 128)


def cell(element: str, given: CellParameters, kind: str, directions: int = 1) -> Launch:
    """kind: "lstm" or "gru". Eight rows a block, or 32 for which weights are read once."""
    _check(element)
    if kind not in GATES or given.outputs % TILE or given.inputs % TILE or given.units % TILE:
        raise BuildError(
            f"a layer of {given.units} {kind} units with {given.inputs} inputs and {given.outputs} outputs; expected "
            f"{' or '.join(GATES)} and multiples of {TILE}; fill its weights with zeros"
        )
    groups = 1 if given.rows <= ROWS else CELL_GROUPS
    grid = (given.outputs // TILE, -(-given.rows // (ROWS * groups)), directions)
    return Launch(f"recurrent_cell_{element}_{kind}_g{groups}", grid, 32 * WARPS)


def begin_step(element: str, given: BeginParameters) -> Launch:
    _check(element)
    return Launch(f"begin_step_{element}", (given.rows, 1 + given.layers, 1), 128)


def pick_states(element: str, given: PickParameters, n_sources: int) -> Launch:
    _check(element)
    return Launch(f"pick_states_{element}", (n_sources, 1, 1), 128)


def source_scores(element: str, given: ScoreParameters, n_sources: int) -> Launch:
    _check(element, beams=given.beams)
    return Launch(f"source_scores_{element}", (-(-given.length // 8), -(-given.beams // 8), n_sources), BLOCK_THREADS)


def source_context(element: str, given: ContextParameters, n_sources: int) -> Launch:
    _check(element, beams=given.beams)
    grid = (-(-given.width // CONTEXT_COLUMNS), n_sources * given.beams, 1)
    return Launch(f"source_context_{element}", grid, BLOCK_THREADS)


def _check_output(given: HeadOutputParameters) -> None:
    if given.outputs % TILE or given.outputs < TILE:
        raise BuildError(f"an output projection to {given.outputs}; expected a multiple of {TILE}; fill it with zeros")


def _check(element: str, head_size: int = TILE, beams: int = 1) -> None:
    if element not in ELEMENTS:
        raise BuildError(f"no kernels for '{element}'; expected one of {', '.join(ELEMENTS)}; pack the weights so")
    if head_size % TILE or not TILE <= head_size <= MAX_HEAD_SIZE:
        raise BuildError(
            f"the head size is {head_size}; the kernels take multiples of {TILE} up to {MAX_HEAD_SIZE}; fill heads up "
            "with zeros"
        )
    if not 1 <= beams <= MAX_BEAMS:
        raise BuildError(f"{beams} beams; the kernels take 1 to {MAX_BEAMS}; search with fewer")
