"""`minirl judge`: an LLM judge behind an OpenAI-compatible endpoint compares responses of an evaluated run.

Replies are stored under a hash of the whole request: a second run sends no requests, and an interrupted one resumes.
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
from minirl.evaluation.llm_judge import LATEST, PROMPT_VERSIONS, Pair, judge_pairs, summarise
from minirl.files import drop_incomplete_line, read_json_lines, write_json
from minirl.tables import Table

KEY_VARIABLE = "MINIRL_JUDGE_API_KEY"
REFERENCE = "reference"
SUMMARY_LABELS = {
    "pairs": "pairs, each judged in both orders",
    "incomplete_pairs": "pairs left out because of an unreadable reply",
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
class JudgeSettings:
    """The LLM judge and its sampling. model: its name on the server; endpoint: ".../v1"; temperature 0 is greedy; max_tokens: of a reply,
    which may cut the explanation.

    deadline: seconds for one attempt of a request; retries: further attempts, after growing pauses, if the server is silent or overloaded.
    Raises InputError for an unknown prompt_version and for an endpoint that is no URL.
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

    def reply_key(self, prompt: str) -> str:
        """Hash of everything that can change the reply. The prompt holds the question and both answers in their order."""
        request = [self.prompt_version, self.model, prompt, self.sampling]
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class JudgeClient:
    """Gets the judge's replies from `file` if they are stored there, else from the endpoint. requests: number sent to the endpoint."""

    def __init__(self, settings: JudgeSettings, file: Path):
        self.settings, self.file, self.requests = settings, file, 0
        self._replies = _read_replies(file)
        self._client = openai.OpenAI(
            base_url=settings.endpoint,
            api_key=os.environ.get(KEY_VARIABLE) or "none",  # a local server needs no key, but the client refuses an empty one
            timeout=settings.deadline,
            max_retries=settings.retries,
        )

    def replies_to(self, prompts: Sequence[str], on_reply: Callable[[int, int], None] = lambda done, total: None) -> list[str]:
        """One reply for each prompt, in order. on_reply: called with the replies received and requested.

        Raises RunError if the server fails, and InputError if it refuses a request; replies received before that are stored.
        """
        missing = {key: prompt for prompt in prompts if (key := self.settings.reply_key(prompt)) not in self._replies}
        if missing:
            self._request(missing, on_reply)
        return [self._replies[self.settings.reply_key(prompt)] for prompt in prompts]

    def _request(self, prompts: dict[str, str], on_reply: Callable[[int, int], None]) -> None:
        """Request and store replies. prompts: by reply key."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.requests += len(prompts)
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            running = {pool.submit(self._reply, prompt): key for key, prompt in prompts.items()}
            with self.file.open("a") as file:
                for done, future in enumerate(as_completed(running), start=1):
                    key, reply = running[future], future.result()
                    self._replies[key] = reply
                    file.write(json.dumps({"key": key, "reply": reply}) + "\n")
                    file.flush()
                    on_reply(done, len(prompts))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, prompt: str) -> str:
        settings = self.settings
        try:
            answer = self._client.chat.completions.create(
                model=settings.model, messages=[{"role": "user", "content": prompt}], **settings.sampling
            )
        except openai.APIStatusError as error:
            raise self._status_error(error) from None
        except openai.APIConnectionError as error:  # the base class of APITimeoutError
            timed_out = isinstance(error, openai.APITimeoutError)
            reason = f"did not answer within {settings.deadline:g} s" if timed_out else "cannot be reached"
            raise RunError(
                f"the judge at {settings.endpoint} {reason}, tried {settings.retries + 1} times; start it, then give the same command "
                "again: the replies received so far are kept"
            ) from None
        return answer.choices[0].message.content or ""

    def _status_error(self, error: openai.APIStatusError) -> Exception:
        message = " ".join(str(error.message).split())[:300]
        if error.status_code >= 500 or error.status_code in (408, 409, 429):
            return RunError(
                f"the judge at {self.settings.endpoint} still answered {error.status_code} at try {self.settings.retries + 1} ({message}); "
                "the replies received so far are kept: give the same command again later"
            )
        return InputError(
            f"the judge at {self.settings.endpoint} refuses a request with {error.status_code} ({message}); check --model, the variable "
            f"{KEY_VARIABLE} and the length that the server allows"
        )


def _read_replies(file: Path) -> dict[str, str]:
    """Stored replies by key, without an incomplete last line."""
    return {row["key"]: row["reply"] for row in read_json_lines(file)} if drop_incomplete_line(file) else {}


def judge_run(
    run: Path,
    a: str,
    b: str,
    on_set: str,
    settings: JudgeSettings,
    prompts: int | None = None,
    on_reply: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Table, list[Path]]:
    """Judge the responses of model `a` against those of `b` (or the references) on a set of the run's evaluation.

    prompts: how many of the set's first prompts; None: all. on_reply: as in `JudgeClient.replies_to`. Writes
    `<run>/judge/<judge's model>/<set>-<a>-<b>.json` and `.md`; replies are stored in `<run>/judge/replies.jsonl`.
    """
    pairs = pairs_of(run, a, b, on_set)[:prompts]
    client = JudgeClient(settings, run / "judge" / "replies.jsonl")
    verdicts = judge_pairs(pairs, settings.prompt_version, lambda texts: client.replies_to(texts, on_reply))
    summary = summarise(verdicts)
    about = {"run": run.name, "set": on_set, "a": a, "b": b, "seed": "the first of the evaluation"} | asdict(settings)
    about |= {"replies": 2 * len(pairs), "requests": client.requests}
    table = _table(a, b, on_set, summary)
    folder = run / "judge" / re.sub(r"[^\w.-]+", "_", settings.model).strip("._")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{on_set}-{a}-{b}.{kind}" for kind in ("json", "md")]
    write_json(files[0], {"about": about, "summary": summary, "verdicts": [asdict(verdict) for verdict in verdicts]})
    lines = ["# Verdicts", "", *(f"- {name}: {value}" for name, value in about.items()), "", table.markdown()]
    files[1].write_text("\n".join(lines))
    return table, files


def pairs_of(run: Path, a: str, b: str, on_set: str) -> list[Pair]:
    """One pair for each prompt of the set, in its order. Raises InputError where `a` and `b` cannot be compared."""
    if a == b:
        raise InputError(f"{a} cannot be compared with itself; give another --b, or leave it out to compare with the references")
    samples = _samples(run, a, on_set)
    if b == REFERENCE:
        return [Pair(row["question"], row["response"], row["references"][0]) for row in samples]
    other_samples = _samples(run, b, on_set)
    if [row["prompt"] for row in samples] != [row["prompt"] for row in other_samples]:
        raise InputError(f"{a} and {b} were sampled for different prompts of the set {on_set}; run the stage evaluate again for both")
    return [Pair(row["question"], row["response"], other["response"]) for row, other in zip(samples, other_samples, strict=True)]


def _samples(run: Path, name: str, on_set: str) -> list[dict[str, Any]]:
    folder = run / "evaluate" / on_set
    file = folder / f"{name}.samples.jsonl"
    if not file.is_file():
        available = sorted(path.name.removesuffix(".samples.jsonl") for path in folder.glob("*.samples.jsonl"))
        raise InputError(
            f"{file} is not there; "
            + (f"the set {on_set} has samples of {', '.join(available)}" if available else "run the stage evaluate, or name another --set")
        )
    return list(read_json_lines(file))


def _table(a: str, b: str, on_set: str, summary: dict[str, float | int | None]) -> Table:
    rows = []
    for name, label in SUMMARY_LABELS.items():
        value, low, high = (summary.get(key) for key in (name, f"{name}_low", f"{name}_high"))
        text = "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        rows.append((label, text + (f" ({low:.3g} to {high:.3g})" if low is not None else "")))
    return Table(f"{a} against {b} on {on_set}", ("", "value"), rows)
