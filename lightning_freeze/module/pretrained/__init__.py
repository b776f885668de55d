"""Pre-trained models: found, loaded in the right precision, with a head and a tokenizer that agree with the data.

May import ``errors`` and ``tasks.py`` of the room around it. Begin reading with ``loading.py``. ``hub.py`` finds
models; ``precision.py``, ``heads.py`` and ``special_tokens.py`` settle what a checkpoint leaves open; ``limits.py``
says what a model can take as input; ``structure.py`` builds a model without weights.
"""
