"""TAGNN's equations for one session in plain loops, as the paper prints them; TAGNN++'s tests use them too."""

import torch


def affine(layer, x):
    """A linear map, its bias if it has one."""
    bias = getattr(layer, "bias", None)
    return layer.weight @ x + (0 if bias is None else bias)


def node_step(graph, h, a):
    """One gated update of one node: equations 2 to 5 in the public code's convention."""
    D = len(h)
    W, b = graph.input.weight.split(D), graph.input.bias.split(D)
    U, d = graph.hidden.weight.split(D), graph.hidden.bias.split(D)
    r = torch.sigmoid(W[0] @ a + b[0] + U[0] @ h + d[0])
    z = torch.sigmoid(W[1] @ a + b[1] + U[1] @ h + d[1])
    return (1 - z) * torch.tanh(W[2] @ a + b[2] + r * (U[2] @ h + d[2])) + z * h


def graph_states(model, session, weight="binary"):
    """{item: state} after the rounds of the graph."""
    states = {item: model.table[item] for item in session}
    if model.graph is None or model.graph.steps == 0:
        return states
    graph, D = model.graph, model.dim
    W_in, W_out = graph.edges.weight.split(D)
    b_in, b_out = graph.edges.bias.split(D)
    steps = list(zip(session, session[1:], strict=False))
    if weight == "binary":
        steps = sorted(set(steps))
    for _ in range(graph.steps):
        after = {}
        for item, h in states.items():
            before, behind = [u for u, v in steps if v == item], [v for u, v in steps if u == item]
            a_in = sum((W_in @ states[u] + b_in for u in before), torch.zeros_like(h)) / max(len(before), 1)
            a_out = sum((W_out @ states[v] + b_out for v in behind), torch.zeros_like(h)) / max(len(behind), 1)
            after[item] = node_step(graph, h, torch.cat([a_in, a_out]) + graph.edge_bias)
        states = after
    return states


def padding_state(model):
    """The state of the padding: a node without edges."""
    h = model.table[model.num_items]
    for _ in range(model.graph.steps if model.graph is not None else 0):
        h = node_step(model.graph, h, model.graph.edge_bias)
    return h


def head_scores(head, table, clicks, padding=0, h_padding=None):
    """Scores of all items from the states of a session's clicks, with a vector for every candidate.

    Args:
        head: a `TargetReadout`.
        clicks: the state of every click; an item clicked twice is there twice.
        padding, h_padding: padding positions that the softmaxes count, and the state there.
    """
    items, last = table[:-1], clicks[-1]
    if head.readout == "L":
        return torch.stack([last @ v for v in items])
    if head.readout == "Avg":
        return torch.stack([sum(clicks) / len(clicks) @ v for v in items])
    inner = [affine(head.attention.W1, last) + affine(head.attention.W2, h) for h in clicks]
    alpha = [head.attention.q.weight[0] @ torch.sigmoid(x) for x in inner]
    if head.attention_softmax:
        alpha, total = [a.exp() for a in alpha], sum(a.exp() for a in alpha)
        if padding:
            x = affine(head.attention.W1, last) + affine(head.attention.W2, h_padding)
            total = total + padding * (head.attention.q.weight[0] @ torch.sigmoid(x)).exp()
        alpha = [a / total for a in alpha]
    s_global = sum(a * h for a, h in zip(alpha, clicks, strict=True))
    if head.readout == "Att":
        return torch.stack([s_global @ v for v in items])
    joined = torch.cat([s_global, last]) if head.hybrid else s_global
    common = affine(head.W3, joined) if hasattr(head.W3, "weight") else joined
    if head.readout == "L+Att":
        return torch.stack([common @ v for v in items])
    scores = []
    for v in items:
        e = [(v @ head.W.weight @ h).exp() for h in clicks]
        s_target = sum(x * h for x, h in zip(e, clicks, strict=True)) / (sum(e) + padding)
        s = (affine(head.W_T, s_target) if hasattr(head.W_T, "weight") else s_target) + common
        scores.append(s @ v)
    return torch.stack(scores)


def assert_close_to_textbook(model, loss, target_loss):
    """Assert that a loss and its gradients are those of the textbook; both graphs are used up."""
    parameters = dict(model.named_parameters())
    wanted = torch.autograd.grad(target_loss, list(parameters.values()), allow_unused=True)
    loss.backward()
    torch.testing.assert_close(loss, target_loss, rtol=0, atol=1e-12)
    for (name, parameter), grad in zip(parameters.items(), wanted, strict=True):
        grad = torch.zeros_like(parameter) if grad is None else grad
        mine = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()
        torch.testing.assert_close(mine, grad, rtol=0, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")
