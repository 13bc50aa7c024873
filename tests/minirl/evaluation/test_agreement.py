"""Agreement of greedy answers with the teacher's, by hand, and its figures in tables."""

import numpy as np
import pytest

from minirl.evaluation.agreement import GreedyAnswers, agreement, greedy_tokens
from minirl.evaluation.report import row_of
from tests.minirl.evaluation.evaluated_samples import models
from tests.minirl.evaluation.test_report import report

END = 2


def answers(*pairs: tuple[list[int], str]) -> GreedyAnswers:
    return GreedyAnswers([np.array(tokens) for tokens, _ in pairs], [text for _, text in pairs])


TEACHERS = answers(([5, END], "yes"), ([5, 6, 7, END], "the cat sat"), ([8, 9], "?!"), ([4, END], "no"))


def test_figures_by_hand():
    """Equal; two tokens of four, and 2/3 of the words; equal without a word; cut before the end token, so only one is identical."""
    figures = agreement(answers(([5, END], "yes"), ([5, 6, 9, END], "the cat ran"), ([8, 9], "?!"), ([4, 4], "no no")), TEACHERS)
    assert figures["identical_start"] == [1.0, 0.75, 0.5, 0.5]
    assert figures["exact_match"] == 0.5
    assert figures["rouge_l"]["mean"] == pytest.approx((100 + 200 / 3 + 100 + 200 / 3) / 4)


def test_an_answer_that_goes_on_after_the_teachers_end_is_no_identical_start():
    longer = answers(([5, END], "yes"), ([5, 6, 7, END], "the cat sat"), ([8, 9, 1, 1, 1], "?! and more"), ([4, END], "no"))
    assert agreement(longer, TEACHERS)["identical_start"] == [1.0, 1.0, 0.75, 0.75]


def test_the_teacher_agrees_with_itself_in_any_script():
    chinese = answers(([5, END], "今天天气"), ([], ""))
    figures = agreement(chinese, chinese)
    assert (figures["rouge_l"]["mean"], figures["exact_match"], figures["identical_start"]) == (100.0, 1.0, [1.0, 1.0])


def test_tokens_are_read_as_they_were_written():
    read = greedy_tokens(TEACHERS.arrays())
    assert [row.tolist() for row in read] == [row.tolist() for row in TEACHERS.tokens]


def test_tables_and_the_closing_row_show_the_agreement():
    figures_by_model = models(("test",), sft=0.4)
    table = report(figures_by_model).tables()[2]
    assert table.title == "test: greedy answers against the teacher's greedy answers"
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    alike = figures_by_model["sft"]["test"]["teacher_agreement"]
    assert rows["teacher"]["exact match"] == rows["teacher"]["same first 4"] == "1" and rows["teacher"]["Rouge-L to teacher"] == "100"
    assert rows["sft"]["Rouge-L to teacher"] == f"{alike['rouge_l']['mean']:.3g}"
    row = row_of(figures_by_model["sft"]["test"])
    assert row["teacher_rouge_l"] == alike["rouge_l"]["mean"] and row["teacher_exact_match"] == alike["exact_match"]
    assert row["teacher_same_first_token"] == alike["identical_start"][0]


def test_without_greedy_answers_there_is_no_table():
    figures = models(("test",), sft=0.4)
    for by_set in figures.values():
        by_set["test"] |= {"teacher_agreement": None}
    assert not any("greedy" in table.title for table in report(figures).tables())
    assert row_of(figures["sft"]["test"])["teacher_rouge_l"] is None
