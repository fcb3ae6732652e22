"""A lexical shortlist: for each source token the target tokens that its translations are made of.

The output projection is the largest product of a decoder step. With a shortlist it is cut to the tokens that can
occur: the union of the lists of a batch's source tokens, the most frequent target tokens, and every id that the
decoding options name. Log-probabilities are then normalised over those tokens only, so scores are a little higher
than without; tokens are the same in all but the share of sentences that `s2s shortlist` measures and records.

    lists.py       the lists as a file
    state.py       decoding with it

and in building/shortlist/

    alignment.py   which target tokens belong to a source token: IBM model 1 over a parallel text
    rewrite.py     decoder steps whose output projection is an input
    making.py      `s2s shortlist`

In a bundle it is a folder of its own, because a bundle has it or not, and an engine may be built later:

    shortlist/
      shortlist.json             what is below, and the hash of every other file
      lists.bin                  the lists (lists.py)
      <target>/decoder_step*.onnx    the steps of a target, "portable" for the bundle's own; their weights stay
                                     where they were

shortlist.json, format version 1, holds

    format, format_version     "s2s-shortlist" and 1
    n_pairs, best, frequent    the parallel text, tokens of a list, tokens that are in every list
    mean_length                tokens of a list, on average over the source tokens that occurred
    head                       where the output projection lies: file, offset, dtype, shape [V,E]; bias the same or null
    targets                    for each target its `graphs`: file, inputs, outputs, max_rows as in engine.json, and
                               `made_from`, the sha256 of the step it was made from
    accuracy                   sentences decoded with and without: shares with equal tokens, by number of beams
    files                      bytes and sha256 of the other files
"""
