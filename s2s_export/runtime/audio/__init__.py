"""Sound as models read it: files to samples (files.py), samples to log-mel features (log_mel.py). Needs numpy alone."""
