"""The division of a node's cores among the workers that are on it."""

from actors.config import ClusterConfig
from actors.groups.core_shares import CoreShare, RolePlaces, divide_cores, share_all_cores
from actors.node_facts import NodeFacts


def node(cores: int | tuple[int, ...], usable: int | None = None) -> NodeFacts:
    ids = tuple(range(cores)) if isinstance(cores, int) else cores
    return NodeFacts(0, None, frozenset(), ids, len(ids) if usable is None else usable)


def threads(places: RolePlaces, facts: dict[str, NodeFacts], **config) -> list[int]:
    shares = share_all_cores(ClusterConfig(**config), places, facts)
    assert not any(share.cores for share in shares)
    return [share.threads for share in shares]


def test_the_processes_of_a_role_divide_the_cores_of_their_own_node():
    facts = {"a": node(8), "b": node(3), "c": node(64, usable=4)}
    for workers, expected in ((1, 8), (2, 4), (3, 2), (20, 1)):
        assert threads(RolePlaces(["a"] * workers), facts) == [expected] * workers
    for workers, tensor_parallel, expected in ((1, 2, 4), (2, 2, 2), (4, 4, 1)):
        assert threads(RolePlaces(["a"] * workers, tensor_parallel), facts) == [expected] * workers
    assert threads(RolePlaces(["a", "b", "a", "c"]), facts) == [4, 3, 4, 4]  # and not the driver's cores divided by four
    assert threads(RolePlaces(["a", "b"]), facts, threads_per_worker=5) == [5, 5]


def one_node(workers: dict[str, int]) -> dict[str, RolePlaces]:
    return {role: RolePlaces(["a"] * count) for role, count in workers.items()}


def cores(shares: dict[str, list[CoreShare]]) -> dict[str, list[tuple[int, ...] | None]]:
    return {role: [share.cores for share in role_shares] for role, role_shares in shares.items()}


def test_roles_that_compute_at_the_same_time_divide_the_cores():
    roles = one_node({"rollout": 2, "teacher": 1, "learner": 2})
    shares = divide_cores(ClusterConfig(), roles, {"a": node(8)})
    assert cores(shares) == {"rollout": [(0,), (1,)], "teacher": [(2, 3)], "learner": [(4, 5), (6, 7)]}
    assert [shares[role][0].threads for role in roles] == [1, 2, 2]
    assert divide_cores(ClusterConfig(threads_per_worker=3), roles, {"a": node(8)})["teacher"][0].threads == 3
    few = divide_cores(ClusterConfig(), roles, {"a": node((4, 6))})  # fewer cores than roles: a container with only cores 4 and 6
    assert cores(few) == {"rollout": [(4,), (4,)], "teacher": [(4,)], "learner": [(6,), (6,)]}
    without_teacher = divide_cores(ClusterConfig(), one_node({"rollout": 2, "learner": 2}), {"a": node(8)})
    assert cores(without_teacher)["rollout"] == [(0, 1), (2, 3)]
    single = divide_cores(ClusterConfig(), roles, {"a": node((5,))})
    assert {core for workers in cores(single).values() for worker in workers for core in worker} == {5}


def test_each_node_is_divided_among_the_roles_that_are_on_it():
    """Core ids are those of the worker's own node; a role alone on a node has all of it and is not pinned."""
    roles = {"rollout": RolePlaces(["a", "b"]), "teacher": RolePlaces(["b"]), "learner": RolePlaces(["a", "c"])}
    facts = {"a": node(4), "b": node((10, 11, 12, 13)), "c": node(6)}
    shares = divide_cores(ClusterConfig(), roles, facts)
    assert cores(shares) == {"rollout": [(0, 1), (10, 11)], "teacher": [(12, 13)], "learner": [(2, 3), None]}
    assert [share.threads for share in (*shares["rollout"], *shares["teacher"], *shares["learner"])] == [2, 2, 2, 2, 6]


def test_under_a_quota_the_threads_are_divided_and_nothing_is_pinned():
    shares = divide_cores(ClusterConfig(), one_node({"rollout": 1, "teacher": 1, "learner": 1}), {"a": node(64, usable=8)})
    assert shares == {"rollout": [CoreShare(2)], "teacher": [CoreShare(2)], "learner": [CoreShare(4)]}


def test_tensor_parallel_processes_divide_their_workers_cores():
    roles = {"rollout": RolePlaces(["a"], 2), "teacher": RolePlaces(["a"]), "learner": RolePlaces(["a"])}
    assert divide_cores(ClusterConfig(), roles, {"a": node(8)})["rollout"] == [CoreShare(1, (0, 1))]
