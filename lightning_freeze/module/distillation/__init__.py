"""Knowledge distillation: a frozen teacher, its outputs kept for each sample, and the loss of a student.

May import ``errors``, ``arguments``, ``namespaces``, the files of the room around it that build models (``build.py``,
``batch.py``, ``pooling.py``, ``tasks.py`` and ``pretrained/``), and of the cache ``store`` and ``identity``.

Begin reading with ``objective.py``, which ``TransformerModule`` uses. ``options.py`` checks the options, ``losses.py``
holds the formulas, ``teacher.py`` loads and runs the teacher, ``kept_outputs.py`` keeps what it returned, and
``first_weights.py`` starts a student from its teacher.
"""
