"""The production losses against the exact gradient of KL(student || teacher), from an enumeration of every response.

The models are tables: one row of logits for each prefix, V = 4, the end token 3, at most 3 tokens. That gives 40 responses, of which 36 are
cut or ended at the limit, or 64 without an end token. Each response passes through `on_policy_losses` alone. Its loss is multiplied by its
probability under the behavior distribution, a constant, and the products are summed: the expectation over samples, without sampling, in
float64 (mathematics, section 3).

The bias of per-token weights, measured by `python -m tests.minirl.objective.test_enumeration 3` (the limit): the distance to the exact
gradient, relative to its norm, and the median cosine with it, over 20 random pairs of models (independent N(0, 1.5^2) logits). Responses
come from the mixture with teacher_share 0.2; length normalization is off.

    at most 3 tokens                   median    least     most   cosine
    exact                             5.1e-16  9.8e-17  1.3e-15    1.000
    paper                                0.23     0.11     0.93    0.985
    lmops                                0.23     0.11     0.93    0.985
    paper, ratio clip 0.2 outside         0.3     0.11     0.93    0.978
    paper, ratio clip 0.2 ppo            0.31     0.16        1    0.972
    product to t (Eq. 5)                 0.22    0.083     0.92    0.989

    at most 5 tokens                   median    least     most   cosine
    exact                               7e-16  3.1e-16  2.2e-15    1.000
    paper                                0.35     0.19        1    0.972
    lmops                                0.35     0.19        1    0.972
    paper, ratio clip 0.2 outside        0.46     0.33      1.2    0.924
    paper, ratio clip 0.2 ppo            0.44     0.19      1.7    0.912
    product to t (Eq. 5)                  0.3     0.12     0.98    0.973
"""

import itertools
import statistics
import sys

import pytest
import torch
from torch import Tensor

from minirl.config.objective import ObjectiveConfig
from minirl.objective.losses import policy_gradient_loss
from minirl.objective.mixture import mixture_logprobs
from minirl.objective.on_policy import on_policy_losses
from tests import oracles

VOCABULARY, END = 4, 3
SEEDS = range(20)

PLAIN = {"length_normalization": False, "ratio_clip": None}
PAPER = ObjectiveConfig(**PLAIN)  # rho_t on both terms
LMOPS_WEIGHTS = ObjectiveConfig(**PLAIN, single_step_weight="none")  # rho_t on the policy gradient only
EXACT = ObjectiveConfig(**PLAIN, importance="exact")


class Toy:
    """Student and teacher as tables [prefixes, V] of logits, and every response that they can give."""

    def __init__(self, seed: int, with_end: bool = True, limit: int = 3):
        alphabet = [token for token in range(VOCABULARY) if not (with_end and token == END)]
        self.with_end = with_end
        prefixes = [prefix for length in range(limit) for prefix in itertools.product(alphabet, repeat=length)]
        self.prefixes = {prefix: row for row, prefix in enumerate(prefixes)}
        ended = [(*prefix, END) for prefix in self.prefixes if with_end]
        self.responses = ended + list(itertools.product(alphabet, repeat=limit))
        generator = torch.Generator().manual_seed(seed)
        self.student = self.table(generator).requires_grad_()
        self.teacher = self.table(generator)
        self.stale = self.student.detach() + 0.5 * self.table(generator)

    def table(self, generator: torch.Generator) -> Tensor:
        return 1.5 * torch.randn(len(self.prefixes), VOCABULARY, dtype=torch.float64, generator=generator)

    def rows(self, response: tuple[int, ...]) -> list[int]:
        """The table's row before each token of a response."""
        return [self.prefixes[response[:t]] for t in range(len(response))]

    def logprobs(self, table: Tensor, response: tuple[int, ...]) -> Tensor:
        return table.log_softmax(-1)[self.rows(response), list(response)]

    def truncated(self, response: tuple[int, ...]) -> bool:
        return not (self.with_end and response[-1] == END)

    def exact_gradient(self) -> Tensor:
        """Autograd of sum_y q(y) [log q(y) - log p(y)]."""
        student = torch.stack([self.logprobs(self.student, y).sum() for y in self.responses])
        teacher = torch.stack([self.logprobs(self.teacher, y).sum() for y in self.responses])
        return torch.autograd.grad((student.exp() * (student - teacher)).sum(), self.student)[0]


def behavior_of(toy: Toy, response: tuple[int, ...], teacher_share: float, stale: bool) -> Tensor:
    """log mu of each token: the mixture of teacher and current or stale student."""
    student = toy.stale if stale else toy.student.detach()
    return mixture_logprobs(toy.logprobs(student, response), toy.logprobs(toy.teacher, response), teacher_share)


def expected_gradient(toy: Toy, loss_of, teacher_share: float = 0.0, stale: bool = False) -> Tensor:
    """Gradient of sum_y mu(y) loss(y); mu is a constant."""
    total = 0.0
    for response in toy.responses:
        behavior = behavior_of(toy, response, teacher_share, stale)
        total = total + behavior.sum().exp() * loss_of(toy, response, behavior)
    return torch.autograd.grad(total, toy.student)[0]


def production(config: ObjectiveConfig, mask_end: bool = False):
    """The production losses of one response, on a grid with one column of padding."""

    def loss_of(toy: Toy, response: tuple[int, ...], behavior: Tensor) -> Tensor:
        rows = toy.rows(response)
        student, teacher = toy.student[rows].log_softmax(-1), toy.teacher[rows].log_softmax(-1)
        mask = torch.ones(1, len(response))
        if mask_end and not toy.truncated(response):
            mask[0, -1] = 0
        losses = on_policy_losses(
            config,
            student_logprobs=padded(toy.logprobs(toy.student, response)),
            behavior_logprobs=padded(behavior),
            teacher_logprobs=padded(toy.logprobs(toy.teacher, response)),
            reverse_kl=padded((student.exp() * (student - teacher)).sum(-1)),
            mask=torch.nn.functional.pad(mask, (0, 1)),
            truncated=torch.tensor([toy.truncated(response)]),
        )
        return losses.policy_gradient + losses.single_step

    return loss_of


def padded(values: Tensor) -> Tensor:
    return torch.cat([values, values.new_full((1,), -7.0)])[None]


def oracle(losses_of):
    """The losses of one response from `tests/oracles.py`."""

    def loss_of(toy: Toy, response: tuple[int, ...], behavior: Tensor) -> Tensor:
        rows = toy.rows(response)
        return sum(losses_of(oracles.Response(toy.student[rows], toy.teacher[rows], response, behavior.tolist())))

    return loss_of


def distance(measured: Tensor, exact: Tensor) -> float:
    """Relative to the norm of the exact gradient."""
    return float((measured - exact).norm() / exact.norm())


def cosine(measured: Tensor, exact: Tensor) -> float:
    return float((measured * exact).sum() / measured.norm() / exact.norm())


@pytest.mark.parametrize("with_end, count", [(True, 40), (False, 64)])
def test_toy_is_a_distribution_over_every_response(with_end, count):
    toy = Toy(0, with_end)
    assert len(set(toy.responses)) == len(toy.responses) == count
    for teacher_share in (0.0, 0.2):
        probability = sum(behavior_of(toy, y, teacher_share, stale=True).sum().exp() for y in toy.responses)
        assert float(probability) == pytest.approx(1.0, abs=1e-12)


# 1. On-policy: exact


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("with_end", [True, False])
def test_on_policy_losses_are_the_gradient_of_reverse_kl(seed, with_end):
    toy = Toy(seed, with_end)
    for config in (PAPER, LMOPS_WEIGHTS, EXACT):
        assert distance(expected_gradient(toy, production(config)), toy.exact_gradient()) < 1e-10


@pytest.mark.parametrize("seed", SEEDS)
def test_masking_the_end_token_bends_the_gradient(seed):
    toy = Toy(seed)
    assert distance(expected_gradient(toy, production(PAPER, mask_end=True)), toy.exact_gradient()) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_dropping_truncated_responses_bends_the_gradient(seed):
    toy = Toy(seed)
    config = ObjectiveConfig(**PLAIN, truncated="drop")
    assert distance(expected_gradient(toy, production(config)), toy.exact_gradient()) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_return_with_the_tokens_own_reward_bends_the_gradient(seed):
    toy = Toy(seed)
    config = ObjectiveConfig(**PLAIN, returns="reward_to_go")
    assert distance(expected_gradient(toy, production(config)), toy.exact_gradient()) > 1e-2


# 2. Off-policy: exact with exact weights only


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("teacher_share", [0.2, 0.5])
def test_exact_weights_are_exact_under_any_behavior(seed, stale, teacher_share):
    toy = Toy(seed)
    assert distance(expected_gradient(toy, production(EXACT), teacher_share, stale), toy.exact_gradient()) < 1e-10


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("stale", [False, True])
def test_exact_weights_are_exact_where_no_token_ends(seed, stale):
    toy = Toy(seed, with_end=False)
    assert distance(expected_gradient(toy, production(EXACT), 0.5, stale), toy.exact_gradient()) < 1e-10


def test_the_oracle_of_the_exact_weights_is_exact():
    toy = Toy(3)
    assert distance(expected_gradient(toy, oracle(oracles.exact_losses), 0.2, stale=True), toy.exact_gradient()) < 1e-10


@pytest.mark.parametrize("seed", range(5))
def test_the_product_of_eq_5_is_not_exact(seed):
    toy = Toy(seed)
    assert distance(expected_gradient(toy, oracle(oracles.product_losses), 0.2), toy.exact_gradient()) > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_per_token_weights_are_biased_and_agree_with_each_other(seed):
    toy = Toy(seed)
    paper, lmops = (expected_gradient(toy, production(config), 0.2) for config in (PAPER, LMOPS_WEIGHTS))
    assert distance(paper, toy.exact_gradient()) > 1e-2
    assert distance(lmops, toy.exact_gradient()) > 1e-2
    assert distance(paper, lmops) < 1e-12


def test_the_bias_of_per_token_weights_grows_with_the_teachers_share():
    """It is zero on-policy, and the gradient still has the right direction at the default share (see the table above)."""
    shares = [0.0, 0.05, 0.2, 0.5]
    biases = [measure_bias(production(PAPER), share) for share in shares]
    medians = [statistics.median(distances) for distances, _ in biases]
    assert medians == sorted(medians) and medians[0] < 1e-10 < 1e-2 < medians[1]
    assert statistics.median(biases[2][1]) > 0.9


# 3. The ratio


@pytest.mark.parametrize("seed", range(5))
def test_the_ratio_is_the_references_ratio_times_w(seed):
    """Checked with the production surrogate: at advantage 1 the policy-gradient loss is minus the sum of the ratios."""
    toy, teacher_share = Toy(seed), 0.2
    for response in toy.responses:
        old, teacher = toy.logprobs(toy.stale, response), toy.logprobs(toy.teacher, response)
        new, behavior = toy.logprobs(toy.student.detach(), response), behavior_of(toy, response, teacher_share, stale=True)
        ones = torch.ones(1, len(response), dtype=torch.float64)
        value = -policy_gradient_loss(new[None], behavior[None], ones, ones)
        reference = [oracles.reference_ratio(*map(float, values), teacher_share) for values in zip(new, old, teacher, strict=True)]
        assert float(value) == pytest.approx(sum(reference), rel=1e-12)


# Other presets


@pytest.mark.parametrize("seed", SEEDS)
def test_opd_and_gkd_have_equal_expected_gradients(seed):
    """In expectation over y ~ q, because the sampled-token term is a sample of the full-vocabulary term."""
    toy = Toy(seed)
    opd, gkd = (expected_gradient(toy, production(ObjectiveConfig(preset=preset))) for preset in ("opd", "gkd"))
    assert distance(opd, gkd) < 1e-12
    assert distance(gkd, toy.exact_gradient()) > 1e-2, "without future rewards the gradient must differ, or this test shows nothing"


def measure_bias(loss_of, teacher_share: float, limit: int = 3) -> tuple[list[float], list[float]]:
    """Distance from and cosine with the exact gradient, one of each for every seed."""
    toys = [Toy(seed, limit=limit) for seed in SEEDS]
    pairs = [(expected_gradient(toy, loss_of, teacher_share), toy.exact_gradient()) for toy in toys]
    return [distance(*pair) for pair in pairs], [cosine(*pair) for pair in pairs]


def main(limit: int) -> None:
    weightings = {
        "exact": production(EXACT),
        "paper": production(PAPER),
        "lmops": production(LMOPS_WEIGHTS),
        "paper, ratio clip 0.2 outside": production(ObjectiveConfig(length_normalization=False)),
        "paper, ratio clip 0.2 ppo": production(ObjectiveConfig(length_normalization=False, clip_form="ppo")),
        "product to t (Eq. 5)": oracle(oracles.product_losses),
    }
    print(f"    {'at most ' + str(limit) + ' tokens':<32} {'median':>8} {'least':>8} {'most':>8} {'cosine':>8}")
    for name, loss_of in weightings.items():
        distances, cosines = measure_bias(loss_of, teacher_share=0.2, limit=limit)
        values = (statistics.median(distances), min(distances), max(distances))
        print(f"    {name:<32} " + " ".join(f"{value:8.2g}" for value in values) + f" {statistics.median(cosines):8.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
