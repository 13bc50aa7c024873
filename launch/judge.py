"""`minirl judge`: a run's sampled responses, scored by a model behind an OpenAI-compatible endpoint.

Replies are kept by a hash of all that was asked, so a second run asks nothing and an interrupted one goes on.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai

from minirl.errors import InputError, RunError
from minirl.evaluation.llm_judge import LATEST, PROMPT_VERSIONS, Pair, judge_all, summarise
from minirl.files import drop_half_line, read_json_lines, write_json
from minirl.tables import Table

KEY_VARIABLE = "MINIRL_JUDGE_API_KEY"
REFERENCE = "reference"
MEANINGS = {
    "pairs": "pairs, each asked in both orders",
    "incomplete_pairs": "pairs left out, a reply being unreadable",
    "unreadable_replies": "unreadable replies",
    "wins": "better in both orders",
    "ties": "neither, or the orders disagree",
    "losses": "worse in both orders",
    "win_rate": "wins and half of the ties, of the complete pairs",
    "score_ratio": "sum of scores over the other's, %",
    "mean_score_a": "mean score",
    "mean_score_b": "mean score of the other",
    "position_bias": "share of pairs whose orders disagree",
    "first_place_gain": "points that the first place gains",
}


@dataclass(frozen=True)
class Judge:
    """Who judges and how. model, endpoint (".../v1"): as the server names them; temperature 0 is greedy; max_tokens ends the explanation.

    deadline: seconds for one try of a request; retries: further tries, with growing pauses, where the server is silent or overloaded.
    """

    endpoint: str
    model: str
    prompt_version: str = LATEST
    temperature: float = 0.0
    max_tokens: int = 256
    deadline: float = 120.0
    retries: int = 4
    concurrency: int = 8

    def __post_init__(self) -> None:
        if self.prompt_version not in PROMPT_VERSIONS:
            raise InputError(f"there is no judge prompt {self.prompt_version}; the versions are {', '.join(PROMPT_VERSIONS)}")
        if not re.match(r"https?://", self.endpoint):
            raise InputError(f"the endpoint {self.endpoint!r} must be a URL such as http://localhost:8000/v1")

    @property
    def sampling(self) -> dict[str, float | int]:
        return {"temperature": self.temperature, "max_tokens": self.max_tokens}

    def key(self, prompt: str) -> str:
        """Of a kept reply: all that may change what the judge says. The prompt holds question, answers and their order."""
        asked = [self.prompt_version, self.model, prompt, self.sampling]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


class Replies:
    """The judge's replies, from `file` where they are kept, else from the endpoint. requests: how many it had to ask for."""

    def __init__(self, judge: Judge, file: Path):
        self.judge, self.file, self.requests = judge, file, 0
        self._kept = _read_kept(file)
        self._client = openai.OpenAI(
            base_url=judge.endpoint,
            api_key=os.environ.get(KEY_VARIABLE) or "none",  # a local server asks for none, and the client refuses an empty one
            timeout=judge.deadline,
            max_retries=judge.retries,
        )

    def to(self, prompts: Sequence[str], asked: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """One reply a prompt, in their order. Raises RunError, or InputError where the server refuses; what had come is kept."""
        missing = {key: prompt for prompt in prompts if (key := self.judge.key(prompt)) not in self._kept}
        if missing:
            self._ask(missing, asked)
        return [self._kept[self.judge.key(prompt)] for prompt in prompts]

    def _ask(self, missing: dict[str, str], asked: Callable[[int, int], None]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.requests += len(missing)
        pool = ThreadPoolExecutor(self.judge.concurrency)
        try:
            running = {pool.submit(self._reply, prompt): key for key, prompt in missing.items()}
            with self.file.open("a") as file:
                for done, future in enumerate(as_completed(running), start=1):
                    key, reply = running[future], future.result()
                    self._kept[key] = reply
                    file.write(json.dumps({"key": key, "reply": reply}) + "\n")
                    file.flush()
                    asked(done, len(missing))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, prompt: str) -> str:
        judge = self.judge
        try:
            answer = self._client.chat.completions.create(
                model=judge.model, messages=[{"role": "user", "content": prompt}], **judge.sampling
            )
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:  # its time-outs too
            why = f"did not answer within {judge.deadline:g} s" if isinstance(error, openai.APITimeoutError) else "cannot be reached"
            raise RunError(
                f"the judge at {judge.endpoint} {why}, tried {judge.retries + 1} times; replies so far are kept: start it, then "
                "give the same command again"
            ) from None
        return answer.choices[0].message.content or ""

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        said = " ".join(str(error.message).split())[:300]
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return RunError(
                f"the judge at {self.judge.endpoint} still answered {error.status_code} at try {self.judge.retries + 1} ({said}); replies "
                "so far are kept: give the same command again later"
            )
        return InputError(
            f"the judge at {self.judge.endpoint} refuses a request with {error.status_code} ({said}); check --model, the variable "
            f"{KEY_VARIABLE} and the length that the server allows"
        )


def _read_kept(file: Path) -> dict[str, str]:
    return {row["key"]: row["reply"] for row in read_json_lines(file)} if drop_half_line(file) else {}


def judge_run(
    run: Path, a: str, b: str, on_set: str, judge: Judge, prompts: int | None = None, asked: Callable[[int, int], None] = lambda *_: None
) -> tuple[Table, list[Path]]:
    """Judge the responses of `a` against those of `b` (or the references) on the first so many prompts of a set of the run's evaluation.

    Writes `<run>/judge/<judge's model>/<set>-<a>-<b>.json` and `.md`; replies are kept in `<run>/judge/replies.jsonl`.
    """
    pairs = pairs_of(run, a, b, on_set)[:prompts]
    replies = Replies(judge, run / "judge" / "replies.jsonl")
    verdicts = judge_all(pairs, judge.prompt_version, lambda texts: replies.to(texts, asked))
    summary = summarise(verdicts)
    about = {"run": run.name, "set": on_set, "a": a, "b": b, "seed": "the first of the evaluation"} | asdict(judge)
    about |= {"replies": 2 * len(pairs), "requests": replies.requests}
    table = _table(a, b, on_set, summary)
    folder = run / "judge" / re.sub(r"[^\w.-]+", "_", judge.model).strip("._")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{on_set}-{a}-{b}.{kind}" for kind in ("json", "md")]
    write_json(files[0], {"about": about, "summary": summary, "verdicts": [asdict(verdict) for verdict in verdicts]})
    lines = ["# Verdicts", "", *(f"- {name}: {value}" for name, value in about.items()), "", table.markdown()]
    files[1].write_text("\n".join(lines))
    return table, files


def pairs_of(run: Path, a: str, b: str, on_set: str) -> list[Pair]:
    """One for each prompt of the set, in its order. Raises InputError where there is nothing to compare."""
    if a == b:
        raise InputError(f"{a} against itself says nothing; give another --b, or leave it out to judge against the references")
    judged = _samples(run, a, on_set)
    if b == REFERENCE:
        return [Pair(row["question"], row["response"], row["references"][0]) for row in judged]
    other = _samples(run, b, on_set)
    if [row["prompt"] for row in judged] != [row["prompt"] for row in other]:
        raise InputError(f"{a} and {b} were sampled for different prompts of the set {on_set}; run the stage evaluate again for both")
    return [Pair(row["question"], row["response"], against["response"]) for row, against in zip(judged, other, strict=True)]


def _samples(run: Path, name: str, on_set: str) -> list[dict[str, Any]]:
    folder = run / "evaluate" / on_set
    file = folder / f"{name}.samples.jsonl"
    if not file.is_file():
        there = sorted(path.name.removesuffix(".samples.jsonl") for path in folder.glob("*.samples.jsonl"))
        raise InputError(
            f"{file} is not there; "
            + (f"the set {on_set} has samples of {', '.join(there)}" if there else "run the stage evaluate first, or name another --set")
        )
    return list(read_json_lines(file))


def _table(a: str, b: str, on_set: str, summary: dict[str, float | int | None]) -> Table:
    rows = []
    for name, meaning in MEANINGS.items():
        value, low, high = (summary.get(key) for key in (name, f"{name}_low", f"{name}_high"))
        text = "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        rows.append((meaning, text + (f" ({low:.3g} to {high:.3g})" if low is not None else "")))
    return Table(f"{a} against {b} on {on_set}", ("", "value"), rows)
