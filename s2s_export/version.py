"""The version of this package. It has a module of its own so that nothing inside has to import the whole package."""

__version__ = "0.1.0"
