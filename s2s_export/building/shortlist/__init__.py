"""Makes shortlists from a parallel text: alignments, lists, and decoder steps over the rows that the lists select."""
