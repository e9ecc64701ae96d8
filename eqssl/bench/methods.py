"""A step of every method against the same method in lightly: same backbone, batch, views, widths and optimizer."""

from importlib.util import find_spec

from eqssl.bench.options import Options
from eqssl.bench.subject import fixed_batch, start, step
from eqssl.bench.table import Row, row
from eqssl.bench.timing import interleave
from eqssl.methods import find_method
from eqssl.training.optim import make_optimizer

AT_MOST = 1.1
NO_LIGHTLY = "skipped: lightly is not installed (pip install eqssl[test])"
NO_PEER = "skipped: eqssl/bench/peers.py has no peer of that name"


def measure(options: Options) -> list[Row]:
    """Return a row for each method; without lightly, or a peer there, the row says so."""
    if find_spec("lightly") is None:
        return [Row(part="methods", name="all", note=NO_LIGHTLY)]
    return [_measure(name, options) for name in options.methods]


def _measure(name: str, options: Options) -> Row:
    from eqssl.bench.peers import PEERS, build_peer

    if name not in PEERS:
        return Row(part="methods", name=name, note=NO_PEER)
    encoder = options.encoders[0] if find_method(name).draw_masks is None else options.vit
    run = start(options.run(encoder, method=name, split=0.0))
    batch = fixed_batch(run)
    peer = build_peer(name, run.model.encoder, run.autocast).to(run.device).train()
    optimizer = make_optimizer(peer, run.config.train)
    seen = [batch.first, batch.second, *([] if batch.mask is None else [batch.mask])]

    def theirs() -> None:
        optimizer.zero_grad(set_to_none=True)
        peer(*seen).backward()
        optimizer.step()
        peer.update()

    run.model.train()
    seconds = interleave({"ours": lambda: step(run, batch), "lightly": theirs}, options.seconds)
    ours = f"{name}, {encoder}, batch {options.batch_size}"
    return row("methods", ours, seconds["ours"], "lightly", seconds["lightly"], at_most=AT_MOST)
