"""The complete loss of an optimizer step: every preset against `tests/oracles.py`, for any padding and splitting.

The tests run from token ids to the divided loss through `minirl.training.update`, as a learner worker does. The student is a table of
logits by position and last token; the teacher is given by hidden states and an output head.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minirl.config.objective import DivergenceConfig, ObjectiveConfig, SoftTargetsConfig
from minirl.model.microbatch import MicroBatch
from minirl.objective.credit import whitening_statistics
from minirl.objective.divergence import DIVERGENCES, TokenStatistics, token_statistics
from minirl.objective.mixture import mixture_logprobs
from minirl.objective.on_policy import on_policy_losses
from minirl.training.inputs import OnPolicyItem, SupervisedItem
from minirl.training.update import LossDivisors, add_sums, frozen_advantages, on_policy_loss, soft_update_loss, supervised_loss
from minirl.types import Rollout, TeacherScores, TokenSequence
from tests import oracles

VOCABULARY, END, LIMIT, WIDTH, LONGEST = 5, 4, 6, 3, 12
TEACHER_SHARE = 0.2

# The prompt and response lengths of each response of a step
shapes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, LIMIT)), min_size=1, max_size=5)


class Step:
    """The data of one optimizer step: responses sampled from the mixture of a stale student and the teacher, and plain text."""

    def __init__(self, shape=((2, 4), (1, 1), (3, LIMIT)), seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)
        self.table = self.random(LONGEST, VOCABULARY, VOCABULARY).requires_grad_()
        self.collected_table = self.table.detach() + 0.5 * self.random(LONGEST, VOCABULARY, VOCABULARY)
        self.head = self.random(VOCABULARY, WIDTH)
        self.items = [self.rollout(*lengths) for lengths in shape]
        self.texts = [self.text(length) for length in (7, 4)]

    def random(self, *shape: int) -> Tensor:
        return 1.5 * torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def tokens(self, count: int) -> np.ndarray:
        return torch.randint(VOCABULARY, (count,), generator=self.generator).numpy()

    def scored(self, sequence: TokenSequence) -> TeacherScores:
        hidden = self.random(sequence.targets, WIDTH)
        logits, targets = hidden @ self.head.T, torch.from_numpy(sequence.tokens[sequence.is_target])
        logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        return TeacherScores(logprobs.numpy(), logits.logsumexp(-1).numpy(), hidden.numpy())

    def rollout(self, prompt: int, response: int) -> OnPolicyItem:
        """A rollout whose prompt may contain the end token; only the last token of a response ends it."""
        rollout = Rollout(self.tokens(prompt), self.tokens(response), np.zeros(response), response == LIMIT, 0, 0, 0)
        scores = self.scored(rollout.sequence)
        collected = self.logprobs(self.collected_table, rollout.sequence)
        behavior = mixture_logprobs(collected, torch.from_numpy(scores.logprobs), TEACHER_SHARE)
        return OnPolicyItem(replace(rollout, behavior_logprobs=behavior.numpy()), scores)

    def text(self, length: int) -> SupervisedItem:
        sequence = TokenSequence(self.tokens(length), np.arange(length) > 0)
        return SupervisedItem(sequence, self.scored(sequence))

    def logits(self, table: Tensor, sequence: TokenSequence) -> Tensor:
        """The rows of logits that predict the targets of a sequence."""
        positions = np.flatnonzero(sequence.is_target) - 1
        return table[positions, sequence.tokens[positions]]

    def logprobs(self, table: Tensor, sequence: TokenSequence) -> Tensor:
        targets = torch.from_numpy(sequence.tokens[sequence.is_target])
        return self.logits(table, sequence).log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def student(self, table: Tensor):
        """The module that the learner calls: (micro-batch, teacher_hidden, temperature, teacher_expectations, divergence) -> statistics."""

        def forward(
            batch: MicroBatch,
            teacher_hidden: Tensor | None,
            temperature: float,
            teacher_expectations: bool,
            divergence: DivergenceConfig | None,
        ) -> TokenStatistics:
            tokens = batch.padded.input_ids
            logits = batch.padded.predicting_rows(table[torch.arange(tokens.shape[1]), tokens])
            teacher = None if teacher_hidden is None else teacher_hidden @ self.head.T / temperature
            switches = {"temperature": temperature, "teacher_expectations": teacher_expectations, "divergence": divergence}
            return token_statistics(logits / temperature, batch.targets, teacher, **switches)

        return forward

    def response(self, item: OnPolicyItem, temperature: float = 1.0) -> oracles.Response:
        return oracles.Response(
            student_logits=self.logits(self.table, item.sequence) / temperature,
            teacher_logits=torch.from_numpy(item.scores.hidden) @ self.head.T / temperature,
            tokens=item.rollout.response_tokens.tolist(),
            behavior=item.rollout.behavior_logprobs.tolist(),
            collected=self.logprobs(self.collected_table, item.sequence).tolist(),
        )

    def gradient(self, loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, self.table)[0]


def production_loss(step: Step, config: ObjectiveConfig, parts: list[list[int]] | None = None, temperature: float = 1.0) -> Tensor:
    """The sum of the losses that the workers compute, each divided by the counts of the step. parts: response indices of a micro-batch."""
    items, parts = step.items, parts or [list(range(len(step.items)))]
    where = {"device": "cpu", "temperature": temperature}
    whitening = None
    if config.credit == "frozen":
        rows, _ = frozen_advantages(step.student(step.collected_table), items, config, **where)
        items = [replace(item, advantages=row) for item, row in zip(items, rows, strict=True)]
        whitening = whitening_statistics(rows, LIMIT) if config.whiten else None
    counts = [len(item.rollout.response_tokens) for item in items]
    scale = LossDivisors(
        on_policy=sum(counts) if config.reduction == "token" else len(counts),
        supervised=sum(text.sequence.targets for text in step.texts),
        whitening=whitening,
    )
    student, losses = step.student(step.table), []
    for part in parts:
        losses.append(on_policy_loss(student, [items[i] for i in part], config, scale, **where, teacher_share=TEACHER_SHARE)[0])
    for text in step.texts if config.pretrain_coefficient else []:
        text = text if config.pretrain_kd_share else replace(text, scores=None)
        pretrain = {"coefficient": config.pretrain_coefficient, "kd_share": config.pretrain_kd_share}
        losses.append(supervised_loss(student, [text], scale, device="cpu", **pretrain)[0])
    return torch.stack(losses).sum()


def oracle_loss(step: Step, preset: str, reduction: str) -> Tensor:
    responses = [step.response(item) for item in step.items]
    losses = {
        "paper": lambda: [oracles.paper_losses(response) for response in responses],
        "lmops": lambda: oracles.lmops_losses(responses, LIMIT),
        "opd": lambda: [oracles.opd_losses(response) for response in responses],
        "gkd": lambda: [oracles.gkd_losses(response) for response in responses],
    }[preset]()
    pretrain, tokens = torch.zeros((), dtype=torch.float64), 1
    if preset in ("paper", "lmops"):
        tokens = sum(text.sequence.targets for text in step.texts)
        for text in step.texts:
            teacher = torch.from_numpy(text.scores.hidden) @ step.head.T
            targets = text.sequence.tokens[text.sequence.is_target].tolist()
            kd_share = {"paper": 0.0, "lmops": 0.5}[preset]
            pretrain = pretrain + oracles.pretrain_loss(step.logits(step.table, text.sequence), targets, teacher, kd_share)
    return oracles.total_loss(losses, [len(response) for response in responses], pretrain, tokens, reduction)


def assert_same(step: Step, loss: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance)
    gradients = step.gradient(loss), step.gradient(expected)
    assert (gradients[0] - gradients[1]).norm() <= tolerance * gradients[1].norm()


# The presets, from token ids to the divided loss


@settings(deadline=None, max_examples=25)
@given(shapes, st.integers(0, 10_000), st.sampled_from(["token", "response"]))
@pytest.mark.parametrize("preset", ["paper", "lmops", "opd", "gkd"])
def test_presets_agree_with_their_oracles(preset, shape, seed, reduction):
    """To 1e-8, not closer: production computes the variance as a difference of squares, the oracle as a sum of squared differences."""
    step = Step(shape, seed)
    config = ObjectiveConfig(preset=preset, reduction=reduction)
    assert_same(step, production_loss(step, config), oracle_loss(step, preset, reduction), tolerance=1e-8)


def test_the_oracle_tells_the_presets_apart():
    step = Step()
    values = [oracle_loss(step, preset, "token").item() for preset in ("paper", "lmops", "opd", "gkd")]
    assert min(abs(a - b) for i, a in enumerate(values) for b in values[:i]) > 1e-2


def test_exact_importance_agrees_with_its_oracle():
    step = Step()
    config = ObjectiveConfig(length_normalization=False, ratio_clip=None, importance="exact", pretrain_coefficient=0.0)
    losses = [oracles.exact_losses(step.response(item)) for item in step.items]
    none = torch.zeros((), dtype=torch.float64)
    expected = oracles.total_loss(losses, [len(item.rollout.response_tokens) for item in step.items], none, 1, "token")
    assert_same(step, production_loss(step, config), expected)


def test_one_temperature_for_rewards_ratios_and_single_step():
    """It divides the logits of both networks everywhere, so the loss is that of the softened models."""
    step, temperature, config = Step(), 0.6, without_text(ObjectiveConfig())
    losses = [oracles.paper_losses(step.response(item, temperature)) for item in step.items]
    none = torch.zeros((), dtype=torch.float64)
    expected = oracles.total_loss(losses, [len(item.rollout.response_tokens) for item in step.items], none, 1, "token")
    assert_same(step, production_loss(step, config, temperature=temperature), expected)
    assert abs(expected.item() - production_loss(step, config).item()) > 1e-2


@settings(deadline=None, max_examples=25)
@given(st.data(), shapes, st.integers(0, 10_000))
@pytest.mark.parametrize("preset", ["paper", "lmops"])
@pytest.mark.parametrize("reduction", ["token", "response"])
def test_neither_micro_batches_nor_padding_nor_order_matter(reduction, preset, data, shape, seed):
    """Each micro-batch is padded to its longest sequence. One may be empty, like that of a worker without responses."""
    step = Step(shape, seed)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape)))
    parts = [[i for i in data.draw(st.permutations(range(len(shape)))) if owner[i] == part] for part in range(4)]
    config = ObjectiveConfig(preset=preset, reduction=reduction)
    assert_same(step, production_loss(step, config, parts), production_loss(step, config))


# Soft targets, from token ids to the divided loss


def soft_losses(step: Step, config: SoftTargetsConfig, parts: list[list[int]] | None = None, temperature: float = 1.0):
    """Loss and sums of the responses and texts of the step, divided by one count. parts: response indices of each micro-batch."""
    items, parts = step.items, parts or [list(range(len(step.items)))]
    count = sum(item.sequence.targets for item in [*items, *step.texts])
    loss, sums = torch.zeros((), dtype=torch.float64), {}
    for part in [*([items[i] for i in part] for part in parts), step.texts]:
        part_loss, part_sums = soft_update_loss(step.student(step.table), part, config, count, device="cpu", temperature=temperature)
        loss = loss + part_loss
        add_sums(sums, part_sums)
    return loss, sums


def softened(scores: TeacherScores, head: Tensor, sequence: TokenSequence, temperature: float) -> TeacherScores:
    logits = torch.from_numpy(scores.hidden) @ head.T / temperature
    logprobs = logits.log_softmax(-1)[range(len(logits)), sequence.tokens[sequence.is_target]]
    return replace(scores, logprobs=logprobs.numpy(), log_normalizers=logits.logsumexp(-1).numpy())


def rows_of(step: Step, item: OnPolicyItem | SupervisedItem) -> tuple[Tensor, Tensor, list[int]]:
    sequence = item.sequence
    teacher = torch.from_numpy(item.scores.hidden) @ step.head.T
    return step.logits(step.table, sequence), teacher, sequence.tokens[sequence.is_target].tolist()


@pytest.mark.parametrize("hard_weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_soft_targets_agree_with_their_oracle(kind, hard_weight):
    """For sampled and for given sequences. The logged sums are the two undivided terms and the checksum."""
    step, switches = Step(), {} if kind == "logit_mse" else {"temperature": 1.7}
    config = SoftTargetsConfig(divergence=DivergenceConfig(kind=kind, **switches), hard_weight=hard_weight)
    loss, sums = soft_losses(step, config)
    rows = [rows_of(step, item) for item in [*step.items, *step.texts]]
    count = sum(len(tokens) for *_, tokens in rows)
    total, soft, hard = (
        sum(oracles.soft_target_loss(*row, kind, weight, **switches) for row in rows) for weight in (hard_weight, 0.0, 1.0)
    )
    assert_same(step, loss, total / count)
    assert sums["supervised_tokens"] == count and sums["teacher_gap_max"] < 1e-12
    for name, expected in (("supervised", total / count), ("divergence", soft), ("hard", hard)):
        assert sums[name].item() == pytest.approx(expected.item())
        assert not sums[name].requires_grad


@settings(deadline=None, max_examples=25)
@given(st.data(), shapes, st.integers(0, 10_000))
def test_soft_targets_do_not_depend_on_micro_batches_padding_or_order(data, shape, seed):
    step, config = Step(shape, seed), SoftTargetsConfig(divergence=DivergenceConfig(kind="jsd", temperature=0.7), hard_weight=0.2)
    owner = data.draw(st.lists(st.integers(0, 3), min_size=len(shape), max_size=len(shape)))
    parts = [[i for i in data.draw(st.permutations(range(len(shape)))) if owner[i] == part] for part in range(4)]
    (loss, sums), (expected, expected_sums) = soft_losses(step, config, parts), soft_losses(step, config)
    assert_same(step, loss, expected)
    numbers, expected_numbers = ({name: value.item() for name, value in s.items()} for s in (sums, expected_sums))
    assert numbers == pytest.approx(expected_numbers)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_soft_reverse_kl_is_the_preset_gkd(temperature):
    """On the same rollouts, scored at the run's temperature T. A divergence at T has the factor T^2, which the preset `gkd` omits."""
    step = Step()
    step.items = [replace(i, scores=softened(i.scores, step.head, i.sequence, temperature)) for i in step.items]
    count = sum(item.sequence.targets for item in step.items)
    config = SoftTargetsConfig(divergence=DivergenceConfig(kind="reverse_kl", temperature=temperature))
    loss, sums = soft_update_loss(step.student(step.table), step.items, config, count, device="cpu", temperature=temperature)
    assert_same(step, loss, temperature**2 * production_loss(step, ObjectiveConfig(preset="gkd"), temperature=temperature))
    assert sums["teacher_gap_max"] < 1e-12


def test_without_scores_soft_targets_are_plain_cross_entropy():
    """For a validation without teacher scores. A worker without sequences still runs the student."""
    step, config = Step(), SoftTargetsConfig()
    texts = [replace(text, scores=None) for text in step.texts]
    (loss, sums), (expected, plain) = (
        soft_update_loss(step.student(step.table), texts, config, 7.0, device="cpu"),
        supervised_loss(step.student(step.table), texts, LossDivisors(supervised=7.0), device="cpu"),
    )
    assert_same(step, loss, expected)
    assert sums["supervised"] == plain["supervised"] and "divergence" not in sums
    empty, sums = soft_update_loss(step.student(step.table), [], config, 7.0, device="cpu")
    assert empty.item() == 0 and sums["supervised_tokens"] == 0
    assert (step.gradient(empty) == 0).all()


def test_scores_add_the_kls_to_the_teacher_to_the_sums_of_a_supervised_loss_and_leave_the_loss():
    step = Step()
    (loss, sums), (plain, plain_sums) = (
        supervised_loss(step.student(step.table), texts, LossDivisors(supervised=7.0), device="cpu")
        for texts in (step.texts, [replace(text, scores=None) for text in step.texts])
    )
    assert_same(step, loss, plain)
    forward = reverse = 0.0
    for text in step.texts:
        q = step.logits(step.table, text.sequence).softmax(-1).detach()
        p = (torch.from_numpy(text.scores.hidden) @ step.head.T).softmax(-1)
        forward += sum((p[n, v] * (p[n, v] / q[n, v]).log()).item() for n in range(len(p)) for v in range(p.shape[1]))
        reverse += sum((q[n, v] * (q[n, v] / p[n, v]).log()).item() for n in range(len(p)) for v in range(p.shape[1]))
    assert sums["supervised_forward_kl"].item() == pytest.approx(forward, rel=1e-9)
    assert sums["supervised_reverse_kl"].item() == pytest.approx(reverse, rel=1e-9)
    assert not sums["supervised_reverse_kl"].requires_grad and "supervised_reverse_kl" not in plain_sums


# Grids


def grids(lengths=(4, 1, 3), padding=0, fill=0.0, seed=0) -> dict[str, Tensor]:
    """Arguments of `on_policy_losses` with the padding set to `fill`."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + padding
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    values = {}
    for name in ("student_logprobs", "behavior_logprobs", "teacher_logprobs", "reverse_kl", "advantages"):
        values[name] = torch.full(mask.shape, fill, dtype=torch.float64)
        for i, length in enumerate(lengths):
            values[name][i, :length] = -torch.rand(length, dtype=torch.float64, generator=generator)
    return {**{name: value.requires_grad_() for name, value in values.items()}, "mask": mask}


def losses_of(config: ObjectiveConfig, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    arguments = {name: value for name, value in values.items() if name != "advantages" or config.credit == "frozen"}
    losses = on_policy_losses(config, **arguments)
    return losses.policy_gradient, losses.single_step


CONFIGS = {
    "paper": ObjectiveConfig(),
    "lmops": ObjectiveConfig(preset="lmops"),
    "exact": ObjectiveConfig(length_normalization=False, ratio_clip=None, importance="exact"),
    "opd": ObjectiveConfig(preset="opd"),
    "gkd": ObjectiveConfig(preset="gkd"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fill", [0.0, 40.0, float("nan")])
def test_wider_padding_with_anything_in_it_changes_nothing(name, fill):
    narrow, wide = grids(), grids(padding=3, fill=fill)
    loss, padded = (sum(losses_of(CONFIGS[name], values)) for values in (narrow, wide))
    assert loss.item() == pytest.approx(padded.item(), rel=1e-14)
    for leaf in ("student_logprobs", "reverse_kl"):
        clean, filled = (
            torch.autograd.grad(value, values[leaf], retain_graph=True, materialize_grads=True)[0]
            for value, values in ((loss, narrow), (padded, wide))
        )
        assert torch.equal(clean, filled[:, : clean.shape[1]])
        assert (filled[~wide["mask"]] == 0).all(), "the padding gets gradient"


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_but_student_and_reverse_kl_gets_gradient(name):
    """Rewards, advantages and weights are constants. Neither loss term has a gradient by the other term's input."""
    values = grids()
    policy_gradient, single_step = losses_of(CONFIGS[name], values)
    others = [values[key] for key in ("teacher_logprobs", "advantages")]
    assert torch.autograd.grad(policy_gradient + single_step, others, allow_unused=True, retain_graph=True) == (None, None)
    assert torch.autograd.grad(single_step, values["student_logprobs"], allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(policy_gradient, values["reverse_kl"], allow_unused=True) == (None,)


def test_coefficients_multiply_their_term():
    values = grids()
    plain = losses_of(ObjectiveConfig(), values)
    scaled = losses_of(ObjectiveConfig(policy_gradient_coefficient=2.0, single_step_coefficient=0.25), values)
    assert [s.item() for s in scaled] == pytest.approx([2 * plain[0].item(), 0.25 * plain[1].item()])


# Values by hand


def by_hand(config: ObjectiveConfig, **extra) -> tuple[float, float]:
    """r = [-1, -2, -4] on policy (all ratios 1), reverse KL [0.5, 0.25, 1], two columns of padding."""
    student = torch.tensor([[-1.0, -1.0, -1.0, 0.0, 0.0]], requires_grad=True)
    losses = on_policy_losses(
        config,
        student_logprobs=student,
        behavior_logprobs=student.detach().clone(),
        teacher_logprobs=torch.tensor([[-2.0, -3.0, -5.0, 7.0, 7.0]]),
        reverse_kl=torch.tensor([[0.5, 0.25, 1.0, 7.0, 7.0]]),
        mask=torch.tensor([[1, 1, 1, 0, 0]]),
        **extra,
    )
    return losses.policy_gradient.item(), losses.single_step.item()


@pytest.mark.parametrize(
    "config, policy_gradient, single_step",
    [
        (ObjectiveConfig(), 7.0, 1.75),  # A = -3, -4, 0
        (ObjectiveConfig(length_normalization=False), 10.0, 1.75),  # A = -6, -4, 0
        (CONFIGS["exact"], 10.0, 1.75),
        (CONFIGS["opd"], 7.0, 0.0),  # A = r
        (CONFIGS["gkd"], 0.0, 1.75),
    ],
)
def test_losses_by_hand(config, policy_gradient, single_step):
    assert by_hand(config) == pytest.approx((policy_gradient, single_step))


def test_given_advantages_are_used_as_they_are():
    advantages = torch.tensor([[1.0, 2.0, 3.0, 9.0, 9.0]])
    assert by_hand(ObjectiveConfig(preset="lmops"), advantages=advantages) == pytest.approx((-6.0, 1.75))


def test_truncated_responses_are_kept_or_dropped_whole():
    cut, finished = torch.tensor([True]), torch.tensor([False])
    assert by_hand(ObjectiveConfig(), truncated=cut) == pytest.approx((7.0, 1.75))
    dropping = ObjectiveConfig(truncated="drop")
    assert by_hand(dropping, truncated=cut) == (0.0, 0.0)
    assert by_hand(dropping, truncated=finished) == pytest.approx((7.0, 1.75))
    with pytest.raises(ValueError, match="which responses were cut"):
        by_hand(dropping)


# The end token


def test_an_end_token_in_a_prompt_is_an_ordinary_token():
    """It changes only the student's input, because masks come from lengths."""
    step = Step(shape=((2, 3),))
    item, config = step.items[0], ObjectiveConfig()
    tokens = item.rollout.prompt_tokens.copy()
    tokens[-1] = END
    step.items = [replace(item, rollout=replace(item.rollout, prompt_tokens=tokens))]
    assert_same(step, production_loss(step, config), oracle_loss(step, "paper", "token"))
    gradient = step.gradient(production_loss(step, without_text(config)))
    assert gradient[1, END].abs().sum() > 0, "the row after the prompt's end token predicts the response's first"


def test_the_end_token_counts_once_and_is_an_action():
    """The row that predicts it gets gradient, the row after it gets none."""
    step = Step(shape=((2, 3),))
    item = step.items[0]
    response = np.array([0, 1, END])
    rollout = replace(item.rollout, response_tokens=response)
    step.items = [OnPolicyItem(rollout, step.scored(rollout.sequence))]
    loss = production_loss(step, without_text(ObjectiveConfig()))
    _, sums = on_policy_loss(
        step.student(step.table), step.items, ObjectiveConfig(), LossDivisors(), device="cpu", temperature=1.0, teacher_share=TEACHER_SHARE
    )
    assert int(sums["response_tokens"]) == 3
    gradient = step.gradient(loss)
    assert gradient[3, 1].abs().sum() > 0, "the row that predicts the end token"
    assert gradient[4].abs().sum() == 0, "nothing follows it"


def without_text(config: ObjectiveConfig) -> ObjectiveConfig:
    return config.model_copy(update={"pretrain_coefficient": 0.0})
