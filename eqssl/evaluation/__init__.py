"""One evaluation protocol for every encoder: frozen features, fixed transforms, figures that carry a version.

PROTOCOL_VERSION changes whenever any figure of the same encoder on the same images would.
"""

PROTOCOL_VERSION = 4
