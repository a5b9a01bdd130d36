"""The op in Triton against the transcription: every layout, gate, mode and dtype, both ways."""

import pytest
import torch

from triton_support import GPU, Run, Setting, Side

VIDEO = (3, 9, 6)
SETTINGS = {
    "ragged video": Setting(Side([VIDEO])),
    "ungated, 128 dimensions": Setting(Side([(4, 6, 9)]), head_dim=128, gate="none"),
    "text before": Setting(Side([70, VIDEO]), gate="number"),
    # Lists of nearly all tiles, of which only the text's is cut: nothing else leaves them room.
    "text before whole tiles": Setting(Side([41, (4, 8, 8)]), top_k=4),
    "text after, competing": Setting(Side([VIDEO, 5]), mode="compete", scale=0.3),
    "text lengths at run time": Setting(
        Side([70, VIDEO, 20], lengths=[[66, 0], [3, 20]]), batch=2, heads=2, groups=1
    ),
    "packed": Setting(Side(packed=5, lengths=[[64, 0, 17, 64, 1], [70, 64, -3, 5, 64]]), batch=2),
    "cross lengths": Setting(Side([(2, 5, 8)]), Side([VIDEO, 40]), groups=1),
    "tiles of 128 tokens": Setting(Side([9, (4, 5, 9)]), tile=(4, 4, 8), top_k=1),
    "tiles of 192 tokens": Setting(Side([(4, 9, 9)]), tile=(3, 8, 8), gate="none"),
    "an image, negative scale": Setting(Side([(1, 20, 16)]), scale=-0.2),
    "one projection": Setting(Side([(4, 5, 8)]), batch=2, fused=True, scale=0.0, top_k=1),
    "four heads a key head": Setting(Side([(2, 8, 8)]), heads=4, groups=1, gate="number"),
    "a batch of nothing": Setting(Side([5, (2, 5, 8)]), batch=0),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("name", SETTINGS)
def test_forward_and_backward(name, seed):
    """Under the interpreter, which takes its time, in one dtype a run."""
    turn = (list(SETTINGS).index(name) + seed) % len(DTYPES)
    for dtype in DTYPES if GPU else DTYPES[turn : turn + 1]:
        run = Run(SETTINGS[name], dtype)
        run.forward()
        run.check_selection()
        run.backward()
        run.check()


def test_no_queries_and_no_keys():
    nothing = Side([(0, 4, 4)])
    for query, key in ((nothing, Side([VIDEO])), (Side([VIDEO]), nothing), (nothing, nothing)):
        run = Run(Setting(query, key, top_k=0 if key is nothing else 1), torch.float16)
        run.forward()
        run.backward()
        assert (run.out == 0).all() and torch.isneginf(run.lse).all()
        assert all((x == 0).all() for x in (*run.gradients, run.dgate))


def test_runs_are_identical():
    run = Run(Setting(Side([70, VIDEO])), torch.bfloat16)
    run.forward()
    run.backward()
    first = [x.clone() for x in (run.out, run.lse, run.mask, *run.gradients, run.dgate)]
    run.forward()
    run.backward()
    again = (run.out, run.lse, run.mask, *run.gradients, run.dgate)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
