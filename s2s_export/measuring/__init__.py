"""What this machine is and how fast: the benchmark, the check of a GPU, and what a search takes of its memory."""
