"""Checks that skipping the frozen prefix changes nothing.

Begin reading with ``eligibility`` (whether a call may skip at all) and ``dry_run`` (the comparison before the first
skip). ``pass_checks`` looks at a pass that has run for real, ``failed_skip`` at one that has skipped, and ``all_ranks``
at what the ranks of a sharded module do together. ``cross_sample`` finds what is computed across samples,
``few_samples`` is a cheaper comparison on two samples, ``self_check`` compares tensors and outputs, ``side_effects``
runs a module without consequences, ``repeat_limit`` notices what happens again and again.

May import ``errors``, ``layers``, ``cache.store``, ``cache.identity`` and ``cache.prefix``.
"""
