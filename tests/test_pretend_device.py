"""The pretended device notices planted faults, and nothing in what a device does without a wait."""

import pytest
import torch

from tests.pretend_device import DEVICE, Accelerator, Pretended, moved_to_device


@pytest.fixture
def device():
    with Accelerator(watched="/test_pretend_device") as accelerator:
        yield accelerator


def there(*values: float) -> Pretended:
    return Pretended(torch.tensor(values))


def reasons(device: Accelerator) -> list[str]:
    return [reason for reason, _ in device.waits]


def test_a_tensor_of_the_host_in_an_operation_is_refused(device):
    with pytest.raises(RuntimeError, match="add: expected all tensors on one device"):
        there(1.0, 2.0) + torch.ones(2)
    with pytest.raises(RuntimeError, match="cat: expected all tensors on one device"):
        torch.cat([there(1.0), torch.zeros(1)])
    assert (there(1.0) + torch.tensor(2.0)).held.tolist() == [3.0]  # CUDA too takes a scalar of the host


@pytest.mark.parametrize(
    "fault, reason",
    [
        (lambda x: x.sum().item(), "a value read by Python"),
        (lambda x: x.tolist(), "a value read by Python"),
        (lambda x: bool((x > 1).all()), "a value read by Python"),
        (lambda x: x[x > 1], "a mask as an index: a size that depends on values"),
        (lambda x: x.masked_select(x > 1), "masked_select: a size that depends on values"),
        (lambda x: (x > 1).nonzero(), "nonzero: a size that depends on values"),
        (lambda x: x[torch.tensor([1])], "an index copied from the host"),
        (lambda x: x.cpu(), "a copy from the device"),
        (lambda x: torch.zeros(2).to(DEVICE), "a copy to the device that is not non_blocking from pinned memory"),
        (lambda x: torch.zeros(2).to(DEVICE, non_blocking=True), "a copy to the device that is not non_blocking from pinned memory"),
        (lambda x: torch.zeros(2).pin_memory().to(DEVICE), "a copy to the device that is not non_blocking from pinned memory"),
        (lambda x: torch.tensor([1.0], device=DEVICE), "a copy to the device that is not non_blocking from pinned memory"),
        (lambda x: x.copy_(torch.zeros(2)), "a copy to the device that is not non_blocking from pinned memory"),
    ],
)
def test_what_the_host_waits_for_is_noted_with_its_line(device, fault, reason):
    fault(there(1.0, 2.0))
    assert reasons(device) == [reason]
    ((_, place),) = device.waits
    assert place.file == "tests/test_pretend_device.py" and place.function == "<lambda>"


def test_copies_from_pinned_memory_and_operations_of_known_size_make_nobody_wait(device):
    pinned = torch.empty(2, pin_memory=True)
    pinned.numpy()[:] = [1, 0]
    copied = pinned.to(DEVICE, non_blocking=True)
    x = there(3.0, 4.0).index_select(0, copied.long()).masked_fill(copied > 0, 0.0)
    x[copied > 0] = 7.0  # a fill with one value needs no size
    assert not device.waits and x.device == DEVICE
    assert x.held.tolist() == [7.0, 3.0] and device.copies_to_device == 1


def test_the_backward_pass_is_counted_too(device):
    x = there(1.0, 2.0).requires_grad_()
    forward = x[torch.tensor([1])] * 3
    assert reasons(device) == ["an index copied from the host"]
    device.waits.clear()
    forward.sum().backward()
    assert reasons(device) == ["an index copied from the host"] and x.grad.held.tolist() == [0.0, 3.0]


def test_operations_are_counted_by_their_line_and_views_are_not(device):
    x = there(1.0, 2.0)
    before = sum(device.operations.values())
    x.view(2, 1)[0].add_(1).mul_(2)
    assert sum(device.operations.values()) - before == 2


@pytest.mark.parametrize("operation", [lambda x: x.cumsum(0), lambda x: x.cumprod(0), lambda x: x.median(0), lambda x: x.histc(3)])
def test_what_has_no_deterministic_kernel_is_noted(device, operation):
    operation(there(1.0, 2.0))
    assert len(device.nondeterministic) == 1
    device.nondeterministic.clear()
    there(1.0, 2.0).long().cumsum(0)
    assert not device.nondeterministic


def test_a_moved_module_computes_the_same_and_keeps_tied_weights():
    torch.manual_seed(0)
    plain, moved = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    moved.load_state_dict(plain.state_dict())
    tied = torch.nn.Sequential(moved, torch.nn.Linear(3, 3))
    tied[1].weight = moved.weight
    moved_to_device(tied)
    assert tied[1].weight is tied[0].weight
    x = torch.randn(2, 3)
    with Accelerator():
        loss = tied[0](Pretended(x)).square().sum()
        loss.backward()
    expected = plain(x).square().sum()
    expected.backward()
    assert torch.equal(loss.held, expected) and torch.equal(tied[0].weight.grad.held, plain.weight.grad)


def test_outside_of_its_context_torch_has_no_accelerator_and_computes_as_before(device):
    assert torch.accelerator.is_available()
    device.close()
    assert not torch.accelerator.is_available() and torch.accelerator.device_count() == 0
    with torch.random.fork_rng():  # asks every device for its state
        torch.manual_seed(0)
    x = torch.ones(2, requires_grad=True)
    x.square().sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]
