"""Checkpoints without frozen weights: what stands in for a weight that was left out, and where it is taken from.

A weight that is as it was when the module was built need not be in a checkpoint. In its place the checkpoint has an
``OmittedWeight`` with a fingerprint of its content. Loading it compares the fingerprint with the weight that the module
already has, and keeps that weight.

May import ``namespaces`` and ``errors``. Begin reading with ``omitted_weight.py`` (what a checkpoint has instead of a
weight), then ``base_weights.py`` (what is known of the weights as built), ``saving.py``, ``loading.py``, and
``merging.py`` (from a small checkpoint to a whole one).
"""

import torch

from lightning_freeze.checkpoints.omitted_weight import OmittedWeight

# Checkpoints name the class by this path, which does not depend on the files of this room.
OmittedWeight.__module__ = __name__
torch.serialization.add_safe_globals([OmittedWeight])  # so that torch.load(weights_only=True) reads it

__all__ = ["OmittedWeight"]
