"""The sentence that names a run's bottleneck: which role waits for which, how long, and the change that helps most."""

from minirl.bench.efficiency import BenchResult, percent, ratios

BALANCED = 0.1  # no role waits for a larger share of an iteration
WORKING = 0.25  # the slowest role of a pipeline is idle for less; otherwise the roles take turns


def bottleneck(result: BenchResult) -> str:
    """One sentence: the largest cost outside the roles' work; if there is none, the role that the others wait for; and the remedy."""
    ratios_by_name = ratios(result)
    overhead, publishing = ratios_by_name["driver_overhead"].value, ratios_by_name["publish_share"].value
    more_prompts = "raise stages.distill.prompts_per_iteration, so that"
    if overhead > 0.05:
        return f"All roles wait for the driver {percent(overhead)} of an iteration; {more_prompts} each call has more work."
    if publishing > 0.1:
        return f"All roles wait for publishing {percent(publishing)} of an iteration; {more_prompts} weights travel less often."
    if result.padding > 0.25:
        return (
            f"Padding is {percent(result.padding)} of the learner's tokens; lower learner.tokens_per_microbatch to group similar lengths."
        )
    return _on_shared_devices(result) if result.shares_cores else _on_separate_devices(result)


def _on_separate_devices(result: BenchResult) -> str:
    slowest = min(result.roles, key=result.idle)
    idle = {role: result.idle(role) for role in result.roles}
    if max(idle.values()) < BALANCED:
        return "The roles are balanced: none waits for a tenth of an iteration; only more devices for all of them make it shorter."
    if idle[slowest] < WORKING:
        return f"{_waiting(slowest, idle)}; raise {slowest}.workers or {_less_work(result, slowest)}."
    waits = ", ".join(f"{role} {percent(share)}" for role, share in idle.items())
    remedy = "set stages.distill.max_staleness: 1, so that sampling goes on meanwhile"
    if result.max_staleness > 0:
        remedy = "raise stages.distill.prompts_per_iteration, so that waiting weighs less"
    return f"The roles wait for one another ({waits} of an iteration); {remedy}."


def _on_shared_devices(result: BenchResult) -> str:
    """Only less work helps: more workers or more overlap would compete for the same devices."""
    efficiency = ratios(result)["efficiency"]
    if result.max_staleness > 0 and not efficiency.met:
        return (
            f"Roles that share devices slow each other down: alone they would take {percent(efficiency.value)} of an iteration; "
            "set stages.distill.max_staleness: 0."
        )
    slowest = result.slowest()
    # Roles that take turns wait while the slowest one computes.
    waits = {role: 1 - result.idle(slowest) if result.max_staleness == 0 else result.idle(role) for role in result.roles}
    return f"{_waiting(slowest, waits)}; {_less_work(result, slowest)} (roles share devices, so more workers do not help)."


def _waiting(slowest: str, waits: dict[str, float]) -> str:
    """waits: the share of an iteration that each other role waits for the slowest."""
    shares = {role: percent(share) for role, share in waits.items() if role != slowest}
    first, *others = shares
    if others and len(set(shares.values())) == 1:
        waiting = f"{' and '.join(shares)} wait for it {shares[first]} of an iteration"
    else:
        waiting = f"{first} waits for it {shares[first]} of an iteration" + "".join(f" and {role} {shares[role]}" for role in others)
    return f"The {slowest} is the bottleneck: {waiting}"


def _less_work(result: BenchResult, role: str) -> str:
    """How to make a role's work shorter."""
    if role == "rollout":
        return "lower data.max_response_tokens"
    if role == "teacher":
        return "take a smaller teacher"
    learner = ratios(result).get("learner")
    if learner and not learner.met:
        return "raise learner.tokens_per_microbatch"
    return "lower stages.distill.epochs_per_iteration" if result.epochs_per_iteration > 1 else "take a smaller student"
