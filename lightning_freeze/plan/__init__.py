"""What a run will do and cost, before it starts: phases x layers, memory and the time of a step.

May import callbacks and every room below them. Begin reading with ``planning.py``.
"""

from lightning_freeze.plan.planning import plan_training
from lightning_freeze.plan.records import Memory, PlannedLayer, PlannedPhase, StepTime
from lightning_freeze.plan.training_plan import TrainingPlan

__all__ = ["Memory", "PlannedLayer", "PlannedPhase", "StepTime", "TrainingPlan", "plan_training"]
