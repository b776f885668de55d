"""Reading, writing and skipping the frozen prefix of a tower.

Begin reading with ``stand_ins`` (skipped blocks, and blocks that are recorded) and ``entries`` (the stored hidden
states of a tower). ``pass_state`` holds what is known about a prefix and about the running pass, ``block_signature``
the structure of what a block returns, ``layout`` converts between batches and samples, ``random_state`` saves and
restores random number generators, ``break_even`` and ``predicted_gain`` say whether reading pays and what it gains.

May import ``errors``, ``layers``, ``cache.store`` and ``cache.identity``.
"""
