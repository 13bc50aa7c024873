"""Report of an evaluation: JSON with every figure, Markdown tables, plots, and rows of the closing table."""

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
SHOWN_AS_ZERO = 1e-6  # rounding makes a zero KL in float32 a few 1e-8, of either sign
Columns = dict[str, Callable[[ModelFigures], str]]


@dataclass(frozen=True)
class EvaluatedModel:
    """directory: where the model was read. weights_sha256: hash of each weight file. lm_loss_corpus: nats per token of plain text, None
    without a corpus. sets: figures by set.
    """

    directory: str
    weights_sha256: dict[str, str]
    lm_loss_corpus: float | None
    sets: dict[str, ModelFigures]


@dataclass(frozen=True)
class EvaluationReport:
    """decoding: how responses were sampled. data: source, size and hash of each set and of the corpus."""

    about: dict[str, str]
    decoding: dict[str, Any]
    data: dict[str, dict[str, Any]]
    models: dict[str, EvaluatedModel]

    def save(self, directory: Path) -> list[Path]:
        """Write the report and replace an earlier one in the same directory; returns the files."""
        files = [directory / "evaluation.json", directory / "evaluation.md"]
        write_json(files[0], asdict(self))
        plots = draw_all({name: model.sets for name, model in self.models.items()}, directory)
        files[1].write_text(self.markdown([plot.name for plot in plots]))
        return files + plots

    def markdown(self, plots: list[str]) -> str:
        """plots: file names beside the Markdown file."""
        lines = ["# Evaluation", ""]
        lines += [f"- {name}: {value}" for name, value in self.about.items()]
        lines.append("- decoding: " + ", ".join(f"{name} {value}" for name, value in self.decoding.items()))
        lines += [f"- {name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()) for name, facts in self.data.items()]
        lines += [f"- {name}: {model.directory}" for name, model in self.models.items()]
        lines += ["", NOTE, ""]
        lines += [table.markdown() for table in self.tables()]
        lines += [f"![{CAPTIONS[plot]}]({plot})\n" for plot in plots]
        return "\n".join(lines)

    def tables(self) -> list[Table]:
        """Two tables for each set, or three with greedy answers, then one for the plain corpus. A column appears where at least one model
        has its figure.
        """
        tables = []
        for name in next(iter(self.models.values())).sets:
            by_model = {model: evaluated.sets[name] for model, evaluated in self.models.items()}
            gold_words_columns = _gold_words_columns(next(iter(by_model.values())))
            tables.append(_table(f"{name}: against references and teacher", by_model, COMPARISON_COLUMNS | gold_words_columns))
            response_columns = RESPONSE_COLUMNS | _exposure_columns(by_model)
            tables.append(_table(f"{name}: the responses themselves, and certainty on gold tokens", by_model, response_columns))
            if columns := _agreement_columns(by_model):
                tables.append(_table(f"{name}: greedy answers against the teacher's greedy answers", by_model, columns))
        losses = [(model, _number(evaluated.lm_loss_corpus)) for model, evaluated in self.models.items()]
        if any(loss for _, loss in losses):
            tables.append(Table("Plain text", ("model", "LM loss"), losses))
        return tables


NOTE = (
    "Brackets hold the 95 % interval of a bootstrap over prompts; s.e. is the standard error over seeds. KL is exact and in nats, per "
    "token of the model's own samples or of gold responses. ECE and accuracy refer to the next gold token; top-k is the share of the "
    "most likely tokens that student and teacher have in common; Dist-n counts words, or characters in scripts without spaces; repeated is "
    "the share of a response's 4-grams that occurred earlier in it; cut is the share of responses that reached the length limit. A greedy "
    "answer takes the most likely token each time; `same first n` is the share of answers whose first n tokens are the teacher's."
)


def _mean(name: str) -> Callable[[ModelFigures], str]:
    return lambda figures: _number((figures[name] or {}).get("mean"))


def _interval(name: str) -> Callable[[ModelFigures], str]:
    return lambda figures: "" if figures[name] is None else f"[{_number(figures[name]['low'])}, {_number(figures[name]['high'])}]"


# Column names are dict keys, so the columns of the two intervals have different blank names.
COMPARISON_COLUMNS: Columns = {
    "Rouge-L": _mean("rouge_l"),
    "": _interval("rouge_l"),
    "s.e.": lambda f: _number(f["rouge_l"]["seed_standard_error"]),
    "reverse KL": _mean("reverse_kl"),
    " ": _interval("reverse_kl"),
    "per response": _mean("reverse_kl_per_response"),
    "forward KL, gold": lambda f: _number(f["forward_kl_gold"]),
    "LM loss, gold": lambda f: _number(f["lm_loss_gold"]),
}
RESPONSE_COLUMNS: Columns = {
    "tokens": lambda f: _number(f["mean_response_tokens"]),
    "cut": lambda f: _number(f["truncated"]),
    "repeated": lambda f: _number(f["repetition"]),
    **{f"Dist-{n}": lambda f, n=n: _number(f["distinct"]["words"][str(n)]) for n in (1, 2, 3, 4)},
    "top-k, samples": lambda f: _number(f["top_k_overlap"]["samples"]),
    "top-k, gold": lambda f: _number(f["top_k_overlap"]["gold"]),
    "accuracy": lambda f: _number((f["calibration"] or {}).get("accuracy")),
    "ECE": lambda f: _number((f["calibration"] or {}).get("ece")),
}


def _gold_words_columns(first_model: ModelFigures) -> Columns:
    columns: Columns = {}
    for number, row in enumerate(first_model["rouge_l_by_gold_words"]):
        words = f">= {row['low']}" if row["high"] is None else f"{row['low']}-{row['high']}"
        columns[f"Rouge-L, {words} words ({row['prompts']})"] = lambda f, number=number: _number(
            (f["rouge_l_by_gold_words"][number]["rouge_l"] or {}).get("mean")
        )
    return columns


def _exposure_columns(by_model: dict[str, ModelFigures]) -> Columns:
    """ExAccErr in two forms, at the greatest length that all models' curves reach."""
    curves = [f["exposure_bias"]["zero"]["percent"] for f in by_model.values() if f["exposure_bias"]]
    if not curves:
        return {}
    length = min(map(len, curves))
    names = {"zero": f"ExAccErr({length}), %", "drop": "finished left out"}
    return {name: lambda f, form=form: _exposure_at(f, form, length) for form, name in names.items()}


def _agreement_columns(by_model: dict[str, ModelFigures]) -> Columns:
    """Identical starts are shown at the powers of two up to the teacher's longest answer."""
    lengths = [len(f["teacher_agreement"]["identical_start"]) for f in by_model.values() if f["teacher_agreement"]]
    if not lengths:
        return {}

    def figure(value: Callable[[ModelFigures], float]) -> Callable[[ModelFigures], str]:
        return lambda figures: _number(value(figures["teacher_agreement"])) if figures["teacher_agreement"] else ""

    return {
        "Rouge-L to teacher": figure(lambda alike: alike["rouge_l"]["mean"]),
        "": lambda figures: _interval("rouge_l")(figures["teacher_agreement"]) if figures["teacher_agreement"] else "",
        "exact match": figure(lambda alike: alike["exact_match"]),
        **{
            f"same first {count}" if count > 1 else "same first token": figure(
                lambda alike, count=count: alike["identical_start"][count - 1]
            )
            for count in (2**power for power in range(min(lengths).bit_length()))
        },
    }


def _exposure_at(figures: ModelFigures, form: str, length: int) -> str:
    if not figures["exposure_bias"]:
        return ""
    curve = figures["exposure_bias"][form]
    percent, low, high = (_number(curve[name][length - 1]) for name in ("percent", "low", "high"))
    return percent and f"{percent} [{low}, {high}]"


def _table(title: str, by_model: dict[str, ModelFigures], columns: Columns) -> Table:
    cells = {column: [cell(figures) for figures in by_model.values()] for column, cell in columns.items()}
    cells = {column: values for column, values in cells.items() if any(values)}
    return Table(title, ("model", *cells), [(model, *row) for model, row in zip(by_model, zip(*cells.values(), strict=True), strict=True)])


def _number(value: float | None) -> str:
    return "" if value is None else "0" if abs(value) < SHOWN_AS_ZERO else f"{value:.3g}"


Row = dict[str, float | int | None]


def row_of(figures: ModelFigures) -> Row:
    """The model's row of the closing table, from its figures on one set; a figure that was not measured is None."""
    rouge, reverse, per_response, alike = (
        figures[name] or {} for name in ("rouge_l", "reverse_kl", "reverse_kl_per_response", "teacher_agreement")
    )
    return {
        "rouge_l": rouge["mean"],
        "rouge_l_standard_error": rouge["seed_standard_error"],
        "rouge_l_low": rouge["low"],
        "rouge_l_high": rouge["high"],
        "reverse_kl": reverse.get("mean"),
        "reverse_kl_standard_error": reverse.get("seed_standard_error"),
        "reverse_kl_per_response": per_response.get("mean"),
        "forward_kl_gold": figures["forward_kl_gold"],
        "mean_response_tokens": figures["mean_response_tokens"],
        "truncated": figures["truncated"],
        "distinct_4": figures["distinct"]["words"]["4"],
        "teacher_rouge_l": alike.get("rouge_l", {}).get("mean"),
        "teacher_exact_match": alike.get("exact_match"),
        "teacher_same_first_token": alike["identical_start"][0] if alike else None,
        "prompts": figures["prompts"],
        "seeds": figures["seeds"],
    }
