"""Fetch what the chatbot experiment needs: a small language model, a company's support dialogues, and general text.

    python experiments/chatbot/prepare.py

``data/smollm2/`` is SmolLM2-135M-Instruct, ``data/support.jsonl`` has the dialogues on technical support, computers
and coding of the English chatterbot corpus (column ``messages``), and ``data/general.txt`` the answers of its other
topics, one in each line. The corpus repeats most dialogues about ten times; here each is written once.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sources import chatterbot, make_smollm2, run, write_jsonl

COMPANY = ("tech_support", "computers", "coding")
ROLES = ("user", "assistant")


def make_support(target: Path) -> None:
    """Write the company's dialogues as chat messages."""
    topics = chatterbot("english")
    rows = [
        {"messages": [{"role": ROLES[i % 2], "content": turn} for i, turn in enumerate(turns)], "topic": topic}
        for topic in COMPANY
        for turns in dict.fromkeys(tuple(turns) for turns in topics[topic])
        if len(turns) > 1
    ]
    write_jsonl(target, rows)


def make_general(target: Path) -> None:
    """Write the answers of all other topics."""
    topics = {topic: dialogues for topic, dialogues in chatterbot("english").items() if topic not in COMPANY}
    answers = (" ".join(turns[1].split()) for dialogues in topics.values() for turns in dialogues if len(turns) > 1)
    long = [answer for answer in dict.fromkeys(answers) if len(answer.split()) >= 6]
    target.write_text("\n".join(long) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run("chatbot", {"support.jsonl": make_support, "general.txt": make_general, "smollm2": make_smollm2})
