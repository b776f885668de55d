"""The cache of hidden states below the first layer that trains.

Begin reading with :mod:`~lightning_freeze.cache.frozen_prefix`, which handles one forward pass of one tower, and with
:mod:`~lightning_freeze.cache.decision`, which says what can happen in it. ``pass_facts`` gathers what the decision
depends on, ``execution`` carries it out, ``cached_module`` holds all towers of a module, ``attachment`` connects them
to a run, ``storage`` opens the store, ``upstream_keys`` lets one tower use the keys of another, and ``messages``
reports.

The rooms below, from the lowest: ``store`` keeps tensors by key; ``identity`` computes the keys; ``prefix`` reads,
writes and skips; ``checks`` makes sure that skipping changes nothing. Each imports only those before it. All of them
may import ``errors``, ``layers`` and ``distributed``; the files of this folder also ``diagnostics``.

In a sharded run all ranks must run the same layers: ``joint_decision`` exchanges the decision, ``prefix.lockstep`` the
extra passes of a check.
"""
