"""Session-based recommendation: what the book builds, as a small package."""

__version__ = "0.1.0"
