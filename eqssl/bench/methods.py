"""A step of every method against the same method in lightly: same backbone, batch, views, widths and optimizer."""

from importlib.util import find_spec

from eqssl.bench.options import Options
from eqssl.bench.timing import Row, interleave, row
from eqssl.bench.training import fixed_batch, make_run, step
from eqssl.methods import find_method
from eqssl.training.optim import make_optimizer

AT_MOST = 1.1
NO_LIGHTLY = "skipped: lightly is not installed (pip install eqssl[test])"
NO_PEER = "skipped: eqssl/bench/peers.py has no peer of that name"


def measure(options: Options) -> list[Row]:
    """Return a row for each method, with a note where there is no lightly or no such method in it."""
    if find_spec("lightly") is None:
        return [Row(part="methods", name="all", note=NO_LIGHTLY)]
    return [_measure(name, options) for name in options.methods]


def _measure(name: str, options: Options) -> Row:
    from eqssl.bench.peers import PEERS, build_peer

    if name not in PEERS:
        return Row(part="methods", name=name, note=NO_PEER)
    encoder = options.encoders[0] if find_method(name).draw_masks is None else options.vit
    run = make_run(options.run(encoder, method=name, equi_fraction=0.0))
    run.model.train()
    batch = fixed_batch(run)
    peer = build_peer(name, run.model.encoder, run.autocast).to(run.device).train()
    optimizer = make_optimizer(peer, run.config.train)
    views = [batch.first, batch.second, *([] if batch.mask is None else [batch.mask])]

    def peer_step() -> None:
        optimizer.zero_grad(set_to_none=True)
        peer(*views).backward()
        optimizer.step()
        peer.update()

    seconds = interleave({"ours": lambda: step(run, batch), "lightly": peer_step}, options.seconds)
    name = f"{name}, {encoder}, batch {options.batch_size}"
    return row("methods", name, seconds["ours"], "lightly", seconds["lightly"], at_most=AT_MOST)
