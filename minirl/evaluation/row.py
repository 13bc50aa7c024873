"""One row of the closing table, from what was measured of a model on the first of its sets."""

from minirl.evaluation.measures import Measures

Row = dict[str, float | int | None]


def row_of(measures: Measures) -> Row:
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
