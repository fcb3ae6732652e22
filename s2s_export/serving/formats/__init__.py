"""The protocols that clients speak, one file each, found by listing this directory. `calls.Format` says what one is."""
