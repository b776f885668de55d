"""What a policy has measured in a turn: one number for each layer, from the training's own gradients and steps.

May import what ``dynamic`` may, and its ``policies``. Begin reading with ``measurement.py`` (what a measurement is),
then ``turn_measurement.py`` (when it is made); the other files are the kinds.
"""
