"""An evaluation for people: evaluation.json with everything, evaluation.md with tables, and the pictures."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minirl.evaluation.figures import ModelFigures
from minirl.evaluation.plots import draw_all
from minirl.files import write_json
from minirl.tables import Table

CAPTIONS = {
    "rouge_l.png": "Rouge-L by set",
    "rouge_l_by_length.png": "Rouge-L by words of the gold response",
    "kl_by_position.png": "KL by position",
    "exposure_bias.png": "ExAccErr by length",
}
ROUNDING = 1e-6  # a KL of float32 that is nothing comes out as a few 1e-8, of either sign
Columns = dict[str, Callable[[ModelFigures], str]]


@dataclass(frozen=True)
class EvaluatedModel:
    """directory: where it was read. weights_sha256: of each file of its weights. lm_loss_corpus: nats per token of plain text, None where
    there was none. sets: its measures on each.
    """

    directory: str
    weights_sha256: dict[str, str]
    lm_loss_corpus: float | None
    sets: dict[str, ModelFigures]


@dataclass(frozen=True)
class EvaluationReport:
    """decoding: how responses were sampled. data: of each set and of the corpus where they come from, their size and hash."""

    about: dict[str, str]
    decoding: dict[str, Any]
    data: dict[str, dict[str, Any]]
    models: dict[str, EvaluatedModel]

    def save(self, directory: Path) -> list[Path]:
        """Returns the files; those of an earlier evaluation in the same place are replaced."""
        files = [directory / "evaluation.json", directory / "evaluation.md"]
        write_json(files[0], asdict(self))
        pictures = draw_all({name: model.sets for name, model in self.models.items()}, directory)
        files[1].write_text(self.markdown([picture.name for picture in pictures]))
        return files + pictures

    def markdown(self, pictures: list[str]) -> str:
        lines = ["# Evaluation", ""]
        lines += [f"- {name}: {value}" for name, value in self.about.items()]
        lines.append("- decoding: " + ", ".join(f"{name} {value}" for name, value in self.decoding.items()))
        lines += [f"- {name}: " + ", ".join(f"{key} {value}" for key, value in one.items()) for name, one in self.data.items()]
        lines += [f"- {name}: {model.directory}" for name, model in self.models.items()]
        lines += ["", NOTE, ""]
        lines += [table.markdown() for table in self.tables()]
        lines += [f"![{CAPTIONS[picture]}]({picture})\n" for picture in pictures]
        return "\n".join(lines)

    def tables(self) -> list[Table]:
        """Two of each set, a column where at least one model has a figure; then the plain corpus."""
        tables = []
        for name in next(iter(self.models.values())).sets:
            on_set = {model: one.sets[name] for model, one in self.models.items()}
            first = next(iter(on_set.values()))
            tables.append(_table(f"{name}: against references and teacher", on_set, COMPARED | _by_gold_words(first)))
            tables.append(_table(f"{name}: the responses themselves, and certainty on gold tokens", on_set, DESCRIBED | _exposure(on_set)))
        losses = [(model, _number(one.lm_loss_corpus)) for model, one in self.models.items()]
        if any(loss for _, loss in losses):
            tables.append(Table("Plain text", ("model", "LM loss"), losses))
        return tables


NOTE = (
    "Brackets hold 95 % of a bootstrap over prompts, s.e. the standard error over seeds. KL is exact and in nats: per token of the model's "
    "own samples, or of gold responses. ECE and accuracy are of the next gold token; top-k is the share of the likeliest tokens that "
    "student and teacher have in common; Dist-n counts words; repeated is the share of a response's 4-grams that came before in it; cut, "
    "of responses that the limit ended."
)


def _mean(name: str) -> Callable[[ModelFigures], str]:
    return lambda measures: _number((measures[name] or {}).get("mean"))


def _interval(name: str) -> Callable[[ModelFigures], str]:
    return lambda measures: "" if measures[name] is None else f"[{_number(measures[name]['low'])}, {_number(measures[name]['high'])}]"


COMPARED: Columns = {
    "Rouge-L": _mean("rouge_l"),
    "": _interval("rouge_l"),
    "s.e.": lambda m: _number(m["rouge_l"]["seed_standard_error"]),
    "reverse KL": _mean("reverse_kl"),
    " ": _interval("reverse_kl"),
    "per response": _mean("reverse_kl_per_response"),
    "forward KL, gold": lambda m: _number(m["forward_kl_gold"]),
    "LM loss, gold": lambda m: _number(m["lm_loss_gold"]),
}
DESCRIBED: Columns = {
    "tokens": lambda m: _number(m["mean_response_tokens"]),
    "cut": lambda m: _number(m["truncated"]),
    "repeated": lambda m: _number(m["repetition"]),
    **{f"Dist-{n}": lambda m, n=n: _number(m["distinct"]["words"][str(n)]) for n in (1, 2, 3, 4)},
    "top-k, samples": lambda m: _number(m["top_k_overlap"]["samples"]),
    "top-k, gold": lambda m: _number(m["top_k_overlap"]["gold"]),
    "accuracy": lambda m: _number((m["calibration"] or {}).get("accuracy")),
    "ECE": lambda m: _number((m["calibration"] or {}).get("ece")),
}


def _by_gold_words(first: ModelFigures) -> Columns:
    columns: Columns = {}
    for number, row in enumerate(first["rouge_l_by_gold_words"]):
        words = f">= {row['low']}" if row["high"] is None else f"{row['low']}-{row['high']}"
        columns[f"Rouge-L, {words} words ({row['prompts']})"] = lambda m, number=number: _number(
            (m["rouge_l_by_gold_words"][number]["rouge_l"] or {}).get("mean")
        )
    return columns


def _exposure(on_set: dict[str, ModelFigures]) -> Columns:
    """ExAccErr in both forms at the length to which all models have a curve."""
    curves = [m["exposure_bias"]["zero"]["percent"] for m in on_set.values() if m["exposure_bias"]]
    if not curves:
        return {}
    length = min(map(len, curves))
    names = {"zero": f"ExAccErr({length}), %", "drop": "finished left out"}
    return {name: lambda m, form=form: _error_at(m, form, length) for form, name in names.items()}


def _error_at(measures: ModelFigures, form: str, length: int) -> str:
    if not measures["exposure_bias"]:
        return ""
    curve = measures["exposure_bias"][form]
    percent, low, high = (_number(curve[name][length - 1]) for name in ("percent", "low", "high"))
    return percent and f"{percent} [{low}, {high}]"


def _table(title: str, on_set: dict[str, ModelFigures], columns: Columns) -> Table:
    cells = {column: [cell(measures) for measures in on_set.values()] for column, cell in columns.items()}
    cells = {column: values for column, values in cells.items() if any(values)}
    return Table(title, ("model", *cells), [(model, *row) for model, row in zip(on_set, zip(*cells.values(), strict=True), strict=True)])


def _number(value: float | None) -> str:
    return "" if value is None else "0" if abs(value) < ROUNDING else f"{value:.3g}"


Row = dict[str, float | int | None]


def row_of(measures: ModelFigures) -> Row:
    """A figure that was not measured is None."""
    rouge, reverse, per_response = (measures[name] or {} for name in ("rouge_l", "reverse_kl", "reverse_kl_per_response"))
    return {
        "rouge_l": rouge["mean"],
        "rouge_l_standard_error": rouge["seed_standard_error"],
        "rouge_l_low": rouge["low"],
        "rouge_l_high": rouge["high"],
        "reverse_kl": reverse.get("mean"),
        "reverse_kl_standard_error": reverse.get("seed_standard_error"),
        "reverse_kl_per_response": per_response.get("mean"),
        "forward_kl_gold": measures["forward_kl_gold"],
        "mean_response_tokens": measures["mean_response_tokens"],
        "truncated": measures["truncated"],
        "distinct_4": measures["distinct"]["words"]["4"],
        "prompts": measures["prompts"],
        "seeds": measures["seeds"],
    }
