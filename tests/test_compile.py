"""torch.compile as an option: the same losses, never required.

In a process of its own: the shape checks of the test run cannot be traced by the compiler.
"""
import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, torch
from sbr_core.models.srgnn import SRGNN
from sbr_core.sessions import Sessions
from sbr_core.train import TrainConfig, fit

sessions = Sessions.from_lists([[1, 2, 1, 3], [4, 5, 4], [2, 2, 6, 1], [3, 1]], 8)
losses = []
for compiled in (False, True):
    torch.manual_seed(0)
    config = TrainConfig(epochs=2, batch_size=16, compile=compiled)
    losses.append([e["loss"] for e in fit(SRGNN(8, dim=4), sessions.prefixes(), config, progress=False)])
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_a_compiled_encoder_trains_as_the_plain_one():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    plain, compiled = json.loads(done.stdout.splitlines()[-1])
    assert plain == pytest.approx(compiled, rel=1e-5)
