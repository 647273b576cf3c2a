"""What is plainly too large for this machine is refused before it is tried: a system that is out of memory kills."""

import os


def machine_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_beyond(needed: int, what: str, instead: str) -> None:
    """Refuse what needs more bytes than there are.

    Args:
        needed: bytes, at least.
        what, instead: for the message: what needs them, and what to do.

    Raises:
        ValueError: naming both sizes.
    """
    there = machine_bytes()
    if needed > there:
        sizes = f"takes {needed / 1e9:,.1f} GB at least, and this machine has {there / 1e9:,.1f} GB of memory"
        raise ValueError(f"{what} {sizes}: {instead}")
