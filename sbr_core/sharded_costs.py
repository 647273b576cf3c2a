"""What a step with a shared table sends, and what a rank must hold: the cost model of `sharded`, in bytes.

Shapes: R ranks, B sessions of a batch, L positions, D width, V items, P parameters of the encoder.
"""


def gather_bytes(whole: int, ranks: int) -> float:
    """Sent by a rank when all ranks hear all parts of something that is `whole` bytes together, in a ring."""
    return whole * (ranks - 1) / ranks


def reduce_bytes(whole: int, ranks: int) -> float:
    """Sent by a rank when all ranks hear the sum of something that is `whole` bytes on each, in a ring."""
    return 2 * whole * (ranks - 1) / ranks


def traffic(B: int, L: int, D: int, ranks: int, encoder: int, size: int = 4) -> dict[str, float]:
    """Bytes that a rank sends in a step with the full softmax, by purpose. V does not occur.

    Args:
        encoder: P.
        size: bytes of a number (4: float32); ids have 8.
    """
    rows, queries = B * L * D * size, B * D * size
    return {
        "ids": gather_bytes(B * L * 8, ranks),
        "rows of the clicks": reduce_bytes(rows, ranks),
        "their gradients": gather_bytes(rows, ranks),
        "queries": gather_bytes(queries, ranks),
        "gradients of the queries": reduce_bytes(queries, ranks),
        "targets": gather_bytes(B * 8, ranks),
        "softmax": reduce_bytes(3 * B * size, ranks),
        "encoder": reduce_bytes(encoder * size, ranks),
    }


def replicated_traffic(V: int, D: int, ranks: int, encoder: int, size: int = 4) -> float:
    """Bytes that a rank sends in a step if every rank holds the whole table and all gradients are added up."""
    return reduce_bytes((V * D + encoder) * size, ranks)


def memory(V: int, D: int, ranks: int, states: float = 3.0, size: int = 4) -> float:
    """Bytes of the table on a rank with its gradient or optimizer state.

    Args:
        states: numbers kept for every number of the table beside itself: 3 for Adam with a dense gradient (two averages
            and the gradient), 2 for SparseAdam, 1 / D for row-wise state.
    """
    return -(-V // ranks) * D * size * (1 + states)
