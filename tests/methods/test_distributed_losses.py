"""Two real processes with half a batch each are one process with the joined batch."""

import pytest
import torch
from baseline_cases import small, view_pair
from torch import distributed as dist

from probjepa.distributed import gather, shared_seed, world_size
from processes import READY, joined

SETTINGS = {
    "vicreg": {"projector_dim": 6},
    "barlow-twins": {"projector_dim": 6},
    "lejepa": {"projector_dim": 6, "hidden_dim": 8, "n_directions": 5},
}
COUNT = 12


def model_of(name):
    # in evaluation mode: BatchNorm's own batch statistics are not what is tested
    return small(name, **SETTINGS[name]).double().eval()


def batches():
    return [view.double() for view in view_pair(COUNT)]


def one_of_two(rank, folder):
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    result = {"world_size": world_size()}
    for name in SETTINGS:
        # the processes' own generators differ, as in training
        torch.manual_seed(5 if rank == 0 else 99)
        half = slice(rank * COUNT // 2, (rank + 1) * COUNT // 2)
        model = model_of(name)
        torch.manual_seed(5 if rank == 0 else 99)
        terms = model.loss([view[half] for view in batches()])
        terms["loss"].backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= 2  # what DistributedDataParallel does
        result[name] = ({k: v.detach() for k, v in terms.items()}, [p.grad for p in model.parameters()])
    x = (torch.arange(6.0).reshape(2, 3) + 10 * rank).t().requires_grad_()  # not contiguous
    joined = gather(x, dim=1)
    (joined * torch.arange(12.0).reshape(3, 4) * (rank + 1)).sum().backward()
    result["gather"] = (joined.detach(), x.grad)
    torch.manual_seed(rank)
    result["seeds"] = [shared_seed(torch.device("cpu")) for _ in range(3)]
    dist.destroy_process_group()
    torch.save(result, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("ranks"))
    ranks = [READY.Process(target=one_of_two, args=(rank, folder)) for rank in (0, 1)]
    for rank in ranks:
        rank.start()
    assert joined(ranks) == [0, 0]
    return [torch.load(f"{folder}/{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_are_one(two, name):
    model = model_of(name)
    torch.manual_seed(5)
    terms = model.loss(batches())
    terms["loss"].backward()
    for rank in (0, 1):
        found, gradients = two[rank][name]
        assert found.keys() == terms.keys()
        for key, value in terms.items():
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-10, atol=1e-12)
        for gradient, p in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, p.grad, rtol=1e-8, atol=1e-10)
    # the halves alone are something else, so the agreement is the gathering's
    torch.manual_seed(5)
    half = model.loss([view[: COUNT // 2] for view in batches()])
    assert abs(half["loss"] - terms["loss"]) > 1e-3


def test_gather_joins_rows_and_sums_gradients(two):
    expected = torch.cat([(torch.arange(6.0).reshape(2, 3) + 10 * rank).t() for rank in (0, 1)], 1)
    factors = 3 * torch.arange(12.0).reshape(3, 4)  # the two processes' losses have the factors 1 and 2
    for rank in (0, 1):
        assert two[rank]["world_size"] == 2
        joined, gradient = two[rank]["gather"]
        assert torch.equal(joined, expected)
        assert torch.equal(gradient, factors.chunk(2, 1)[rank])


def test_the_seed_is_the_first_processes_and_new_each_time(two):
    torch.manual_seed(0)
    alone = [shared_seed(torch.device("cpu")) for _ in range(3)]
    assert two[0]["seeds"] == two[1]["seeds"] == alone
    assert len(set(alone)) == 3


def test_one_process_gathers_nothing():
    assert world_size() == 1
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
