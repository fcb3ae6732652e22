"""Pictures: reading them from files, and what is done to them before a model sees them."""
