"""A lexical shortlist: for each source token, the target tokens that may occur in its translations.

The output projection is the largest matrix product of a decoder step. A shortlist reduces it to the tokens that can
occur: the union of the lists of a batch's source tokens, the most frequent target tokens, and every id that the
decoding options name. Log-probabilities are normalised over these tokens only, so that scores are slightly higher than
without a shortlist. Some sentences get other tokens; `s2s shortlist` measures and records how many.

    lists.py       the lists as a file
    state.py       decoding with it

and in building/shortlist/:

    alignment.py   which target tokens belong to a source token: IBM model 1 over a parallel text
    rewrite.py     decoder steps whose output projection is an input
    making.py      `s2s shortlist`

It is a folder of its own in the bundle, because not every bundle has one, and because engines may be built later:

    shortlist/
      shortlist.json             the fields below, and the hash of every other file
      lists.bin                  the lists (lists.py)
      <target>/decoder_step*.onnx    the decoder steps of a target ("portable": of the bundle's own graphs); they use
                                     the weights where these are already

shortlist.json, format version 1, holds

    format, format_version     "s2s-shortlist" and 1
    n_pairs, best, frequent    pairs of the parallel text, tokens in a list, tokens that every batch gets
    mean_length                mean number of tokens in the lists of source tokens that occurred
    head                       the place of the output projection: file, offset, dtype, shape [V,E]; likewise for
                               the bias, or null
    targets                    for each target `graphs` (file, inputs, outputs, max_rows as in engine.json) and
                               `made_from` (the sha256 of the steps from which these were made)
    accuracy                   shares of sentences with equal tokens, with and without the shortlist, by number of beams
    files                      bytes and sha256 of the other files
"""
