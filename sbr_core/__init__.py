"""Session-based recommendation: what the book builds, as a small package."""

import os

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch on Linux: huge pages, so large tables are read faster

__version__ = "0.1.0"
