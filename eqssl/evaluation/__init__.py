"""One evaluation protocol for every encoder: frozen features, fixed transforms, metrics that carry a version.

PROTOCOL_VERSION changes whenever any metric of the same encoder on the same images would.
"""

PROTOCOL_VERSION = 5
