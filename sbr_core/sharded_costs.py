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

    The sampled softmax of `sharded_losses` sends the same, however many negatives it draws.

    Args:
        encoder: P.
        size: bytes of a number (4: float32); ids have 8.
    """
    queries = B * D * size
    return _looked_up(B * L, 0, D, ranks, size) | {
        "queries": gather_bytes(queries, ranks),
        "gradients of the queries": reduce_bytes(queries, ranks),
        "targets": gather_bytes(B * 8, ranks),
        "softmax": reduce_bytes(3 * B * size, ranks),
        "encoder": reduce_bytes(encoder * size, ranks),
    }


def fetched_traffic(
    B: int, L: int, D: int, ranks: int, encoder: int, negatives: int, shared: bool = True, size: int = 4
) -> dict[str, float]:
    """Bytes that a rank sends in a step with a loss that fetches its candidates' rows: negative sampling, triplet.

    Args:
        encoder, size: as in `traffic`.
        negatives: k; each rank asks for its own k if they are `shared` by its sessions, else each session does.
    """
    candidates = B + (ranks if shared else B) * negatives
    return _looked_up(B * L, candidates, D, ranks, size) | {"encoder": reduce_bytes(encoder * size, ranks)}


def _looked_up(clicks: int, candidates: int, D: int, ranks: int, size: int) -> dict[str, float]:
    """Of a step's look-ups, that many by all ranks together."""
    width = D * size
    fetched = {"rows of the candidates": reduce_bytes(candidates * width, ranks)} if candidates else {}
    return {
        "ids": gather_bytes((clicks + candidates) * 8, ranks),
        "rows of the clicks": reduce_bytes(clicks * width, ranks),
        **fetched,
        "their gradients": gather_bytes((clicks + candidates) * width, ranks),
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
