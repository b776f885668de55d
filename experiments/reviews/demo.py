"""The main job from end to end: fine-tune on the reviews with gradual unfreezing, then test the best checkpoint.

    python experiments/reviews/demo.py

Call it from the repository root, after ``prepare.py``. It only runs the two commands that a user would type.
"""

import subprocess
import sys
from pathlib import Path

CONFIG = "experiments/reviews/gradual.yaml"
RUNS = Path("runs/reviews")  # as base.yaml has it


def call(*arguments: str) -> None:
    """Run ``lightning-freeze`` from the environment of this interpreter; a failure ends the demo with its status."""
    print("\n$ lightning-freeze", *arguments, flush=True)
    status = subprocess.run([str(Path(sys.executable).with_name("lightning-freeze")), *arguments]).returncode
    if status:
        sys.exit(status)


def main() -> None:
    """Fit, find the best checkpoint of that very run, test it."""
    before = set(RUNS.glob("version_*"))
    call("fit", "--config", CONFIG)
    (run,) = set(RUNS.glob("version_*")) - before
    (checkpoint,) = run.glob("checkpoints/*.ckpt")
    call("test", "--config", CONFIG, "--ckpt_path", str(checkpoint))
    print(f"Next: the curves in {run}/metrics.csv, other schedules and their results in experiments/reviews/README.md")


if __name__ == "__main__":
    main()
