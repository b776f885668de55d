"""What to freeze: a rule of thumb, measurements of a model on some data, and a short race of plans.

``measures/`` holds the measurements as pure functions. May import every room except ``cli``. Begin reading with
``advising.py``; ``rule_of_thumb.py`` stands alone.
"""

from lightning_freeze.advice.advising import advise
from lightning_freeze.advice.result import Advice
from lightning_freeze.advice.rule_of_thumb import RuleOfThumb, rule_of_thumb

__all__ = ["Advice", "RuleOfThumb", "advise", "rule_of_thumb"]
