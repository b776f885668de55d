"""Data for language models: prompts with responses, chat messages, and packing.

``messages.py`` reads a list of chat messages, ``rendering.py`` turns a row into text and says which characters are
responses, ``masking.py`` turns that into token ids and labels, and ``packing.py`` joins short examples into long ones.

May import ``reading`` and ``tokenizer`` of this room, ``module``, ``errors`` and ``namespaces``. Begin reading with
``rendering.py``.
"""
