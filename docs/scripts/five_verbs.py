"""Draws docs/five_verbs.svg: the five verbs of an iteration over the three groups of processes."""

import sys

from docs.scripts.generated import ROOT, write_or_check

WIDTH, HEIGHT = 960, 430
INK, MUTED, PAPER = "#24292f", "#57606a", "#ffffff"
BOXES = {  # name: x, color, heading, lines
    "rollout": (40, "#3b75af", "rollout group", ["vLLM engines", "hold the student,", "and the teacher for mixing"]),
    "teacher": (360, "#c8761f", "teacher group", ["vLLM engines", "hold the frozen teacher,", "one or an ensemble"]),
    "learner": (680, "#3f8440", "learner group", ["DeepSpeed ranks, ZeRO 0 to 3", "hold the student", "and the teacher's output head"]),
}
BOX_WIDTH, BOX_TOP, BOX_HEIGHT = 240, 150, 130


def picture() -> str:
    """The whole file."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" role="img">',
        "<title>One iteration: sample, score, credit, update, publish</title>",
        f'<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
        f'<path d="M0,0 L10,5 L0,10 z" fill="{INK}"/></marker></defs>',
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}" rx="12" fill="{PAPER}" stroke="#d0d7de"/>',
        *_driver(),
        *(part for name in BOXES for part in _box(name)),
        *_arrows(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _driver() -> list[str]:
    """The bar above the groups; its dashed lines stand for calls and references, which are all that the driver sends."""
    lines = [f'<rect x="40" y="28" width="880" height="62" rx="8" fill="#f6f8fa" stroke="{MUTED}"/>']
    lines.append(_text(WIDTH / 2, 54, "driver: for each iteration, sample, score, credit, update, publish", size=18, weight="bold"))
    lines.append(
        _text(
            WIDTH / 2, 77, "holds references and scalars; tokens, hidden states and weights go from worker to worker", size=14, color=MUTED
        )
    )
    for x, *_ in BOXES.values():
        middle = x + BOX_WIDTH / 2
        lines.append(f'<path d="M{middle},92 V{BOX_TOP - 4}" stroke="{MUTED}" stroke-dasharray="4 4" fill="none"/>')
    return lines


def _box(name: str) -> list[str]:
    x, color, heading, lines = BOXES[name]
    middle = x + BOX_WIDTH / 2
    parts = [
        f'<rect x="{x}" y="{BOX_TOP}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="8" fill="{PAPER}" stroke="{color}" stroke-width="2"/>',
        f'<path d="M{x},{BOX_TOP + 36} v-28 q0,-8 8,-8 h{BOX_WIDTH - 16} q8,0 8,8 v28 z" fill="{color}"/>',
        _text(middle, BOX_TOP + 24, heading, size=17, color=PAPER, weight="bold"),
    ]
    return parts + [_text(middle, BOX_TOP + 62 + 22 * i, line, size=15) for i, line in enumerate(lines)]


def _arrows() -> list[str]:
    """Payloads between the groups, each with the verb that moves it."""
    gap_1, gap_2, y = (BOXES["rollout"][0] + BOX_WIDTH, BOXES["teacher"][0] + BOX_WIDTH, BOX_TOP + 80)
    arrow = f'stroke="{INK}" stroke-width="2" fill="none" marker-end="url(#tip)"'
    rollout, learner = BOXES["rollout"][0] + BOX_WIDTH / 2, BOXES["learner"][0] + BOX_WIDTH / 2
    bottom = BOX_TOP + BOX_HEIGHT
    return [
        f'<path d="M{gap_1 + 4},{y} H{gap_1 + 76}" {arrow}/>',
        _text(gap_1 + 40, y - 30, "1 sample", size=15, weight="bold"),
        _text(gap_1 + 40, y - 12, "rollouts", size=14, color=MUTED),
        f'<path d="M{gap_2 + 4},{y} H{gap_2 + 76}" {arrow}/>',
        _text(gap_2 + 40, y - 30, "2 score", size=15, weight="bold"),
        _text(gap_2 + 40, y - 12, "+ states", size=14, color=MUTED),
        _text(learner, bottom + 26, "3 credit: rewards to returns", size=15, weight="bold"),
        _text(learner, bottom + 48, "4 update: optimizer steps", size=15, weight="bold"),
        f'<path d="M{learner},{bottom + 60} v20 q0,16 -16,16 H{rollout + 16} q-16,0 -16,-16 V{bottom + 5}" {arrow}/>',
        _text(WIDTH / 2, bottom + 84, "5 publish", size=15, weight="bold"),
        _text(WIDTH / 2, bottom + 118, "student weights with a version number, through host memory or NCCL", size=14, color=MUTED),
    ]


def _text(x: float, y: float, text: str, *, size: int, color: str = INK, weight: str = "normal") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{color}" font-weight="{weight}" text-anchor="middle">{text}</text>'


def main() -> int:
    return write_or_check(ROOT / "docs" / "five_verbs.svg", picture())


if __name__ == "__main__":
    sys.exit(main())
