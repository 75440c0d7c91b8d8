"""What is chosen for an encoder: by the memory that it needs, its first layer and the shape of its Jacobian."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jacobian_models import reference_score
from torch import Tensor, nn

from probjepa.jacobian import jepa_score_details
from probjepa.jacobian.calibrated import possible
from probjepa.jacobian.encoders import as_encoder, exact_gradients
from probjepa.jacobian.memory import fitting, free_memory, in_chunks
from probjepa.jacobian.plan import Plan, find_patchify, largest_chunk, make_plan
from probjepa.jacobian.rows import Passes, worthwhile_batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# of Dense: 5 rows of 48 float32, and 3 matrices 5 × 5 of float64
JACOBIAN = 5 * 48 * 4 + 3 * 25 * 8
# what its backward pass keeps of an input: tanh's output; the product's transposed weight is the weight's memory
SAVED = 4 * 5


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.out(x.flatten(1)))


def plan(
    monkeypatch: pytest.MonkeyPatch, f: Any, x: Tensor, free: int, estimator: str = "auto", **options: Any
) -> Plan:
    """The plan where ``free`` bytes can be had."""
    monkeypatch.setattr("probjepa.jacobian.memory.free_memory", lambda device: free)
    settings = {"rank": None, "chunk_size": None, **options}
    with exact_gradients(as_encoder(f)):
        return make_plan(as_encoder(f), x[:1], estimator, **settings)


@pytest.mark.parametrize(
    ("estimator", "each"),
    [
        ("exact", JACOBIAN + 2 * SAVED),
        ("subspace", JACOBIAN + 2 * SAVED),
        ("sketch", JACOBIAN // 8 + 2 * SAVED),
        ("slq", 3 * 2 * SAVED),  # no Jacobian, but the graph of the first derivative
    ],
)
def test_a_chunk_fills_half_of_the_memory(monkeypatch: pytest.MonkeyPatch, estimator: str, each: int) -> None:
    f, x = Dense(), torch.randn(1, 3, 4, 4)
    for count in (1, 2, 7, 100):
        assert plan(monkeypatch, f, x, 2 * count * each, estimator).chunk_size == count
        assert plan(monkeypatch, f, x, 2 * count * each - 2, estimator).chunk_size == max(1, count - 1)
    assert plan(monkeypatch, f, x, 2**40, estimator, chunk_size=3).chunk_size == 3


def test_memory_that_is_kept_twice_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.eye(6))
            self.register_buffer("scale", torch.ones(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            y = torch.exp(x)  # 24 bytes, kept by itself and thrice by the product
            return (y * y.view_as(y) * y.flip(1).flip(1).detach()) @ self.weight.T + y @ self.scale.T

    x = torch.randn(1, 6)
    # what is flipped back is memory of its own, and so is the first product, of which the second keeps none
    each = 6 * 6 * 4 + 3 * 36 * 8 + 2 * (24 + 24)
    for count in (1, 5):
        assert plan(monkeypatch, Twice(), x, 2 * count * each, "exact").chunk_size == count
        assert plan(monkeypatch, Twice(), x, 2 * count * each - 2, "exact").chunk_size == max(1, count - 1)


def test_sparse_weights_are_no_obstacle() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.eye(4).to_sparse())

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.weight, torch.tanh(x).T).T

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    expected = jepa_score_details(torch.tanh, x, estimator="exact").score
    torch.testing.assert_close(jepa_score_details(Sparse(), x, estimator="exact").score, expected)


@pytest.mark.parametrize("kind", ["zero rows", "columns"])
def test_second_derivatives_hold_their_graph_too(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def f(x: Tensor) -> Tensor:  # tanh keeps its output: 40 bytes
        y = torch.tanh(x)
        return y * (torch.arange(10) > 4) if kind == "zero rows" else torch.cat([y, y], 1)

    width, dim = (10, 10) if kind == "zero rows" else (10, 20)
    made = plan(monkeypatch, f, torch.randn(1, width), 2**40, "exact")
    assert (made.passes.skip_zero_rows, made.passes.forward) == (kind == "zero rows", kind == "columns")
    saved = 40 + (10 if kind == "zero rows" else 0)  # and the product keeps the mask
    each = dim * width * 4 + 3 * dim * dim * 8 + 3 * 2 * saved
    for free, count in ((10 * each, 5), (10 * each - 2, 4)):
        assert plan(monkeypatch, f, torch.randn(1, width), free, "exact").chunk_size == count


def test_auto_sketches_below_the_memory_of_one_jacobian_and_not_for_an_int_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    f, x, enough = Dense(), torch.randn(1, 3, 4, 4), 2 * (JACOBIAN + 2 * SAVED)
    found = plan(monkeypatch, f, x, enough)
    assert (found.estimator, found.reason) == ("exact", "no patch embedding comes first")
    found = plan(monkeypatch, f, x, enough - 2)
    assert found.estimator == "sketch"
    assert "half of the free memory" in found.reason
    assert plan(monkeypatch, f, x, enough - 2, rank=2).estimator == "exact"
    assert plan(monkeypatch, f, x, 2**40, "slq").reason == "as asked"


def test_few_inputs_are_copied_as_far_as_their_activations_go_in(monkeypatch: pytest.MonkeyPatch) -> None:
    f, x = Dense(), torch.randn(1, 3, 4, 4)
    found = [
        plan(monkeypatch, f, x, 2 * free, "exact").passes.least_batch for free in (0, 2 * 3 * SAVED, 2**40)
    ]
    assert found == [1, 3, 8]


@pytest.mark.parametrize(
    ("device", "width", "most", "busy"),
    [(CPU, 48, 2**18 // 48, 8), (CPU, 2**17, 8, 8), (CUDA, 48, 2**24 // 48, 32), (CUDA, 2**22, 8, 32)],
)
def test_a_device_is_filled_and_no_more(device: torch.device, width: int, most: int, busy: int) -> None:
    assert largest_chunk(device, width) == most
    assert worthwhile_batch(device) == busy


def test_a_chunk_is_no_larger_than_what_fills_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(monkeypatch, Dense(), torch.randn(1, 3, 4, 4), 2**60)
    assert found.chunk_size == largest_chunk(CPU, 48)
    assert (found.dim, found.few_columns) == (5, False)


@pytest.mark.parametrize(
    ("width", "forward", "few"), [(5, True, True), (6, True, True), (7, False, True), (12, False, False)]
)
def test_columns_are_taken_up_to_half_as_many_as_rows(
    monkeypatch: pytest.MonkeyPatch, width: int, forward: bool, few: bool
) -> None:
    made = plan(monkeypatch, nn.Linear(width, 12), torch.randn(1, width), 2**40, "exact")
    skips = few and not forward
    assert (made.passes.forward, made.passes.skip_zero_rows, made.few_columns) == (forward, skips, few)
    with_zeros = plan(
        monkeypatch, nn.Sequential(nn.Linear(width, 12), nn.ReLU()), torch.randn(1, width), 2**40, "exact"
    )
    assert (with_zeros.passes.forward, with_zeros.passes.skip_zero_rows) == (forward, not forward)


def test_zero_rows_are_skipped_behind_a_folded_patch_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    f = nn.Sequential(Patches(), nn.ReLU()).eval()
    f(x := torch.randn(1, 3, 4, 4))
    assert plan(monkeypatch, f, x, 2**40, "folded").passes.skip_zero_rows


@pytest.mark.parametrize("estimator", ["sketch", "slq", "subspace"])
def test_the_other_estimators_take_all_rows(monkeypatch: pytest.MonkeyPatch, estimator: str) -> None:
    f = nn.Sequential(nn.Linear(12, 12), nn.ReLU())
    passes = plan(monkeypatch, f, torch.randn(1, 12), 2**40, estimator).passes
    assert (passes.forward, passes.skip_zero_rows, passes.patchify) == (False, False, None)


class Patches(nn.Module):
    """Patches of 2 × 2 × 3 = 12 numbers, in ``dim`` channels, and what is done with the images is ``first``."""

    def __init__(self, first: Any = None, dim: int = 6, **options: Any) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 2, **{"stride": 2, **options})
        self.first = (lambda patch, x: patch(x)) if first is None else first
        self.out = nn.LazyLinear(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.first(self.patch, x)).flatten(1))


def constant_first(patch: nn.Module, x: Tensor) -> Tensor:
    return patch(torch.ones_like(x[:1])) + patch(x)


def constant_last(patch: nn.Module, x: Tensor) -> Tensor:
    return patch(x) + patch(torch.ones_like(x[:1]))


@pytest.mark.parametrize(
    ("first", "channels", "folds"),
    [
        (None, 3, True),
        (lambda patch, x: patch(x[:]), 3, True),
        (lambda patch, x: patch(1 * x), 3, False),
        (lambda patch, x: patch(input=x), 3, False),
        (lambda patch, x: patch(x) + patch(x), 3, False),
        (lambda patch, x: patch(x) + x.mean((1, 2, 3), keepdim=True), 3, False),
        (lambda patch, x: patch(x.expand(-1, 3, -1, -1)), 1, False),  # a pixel stands in three channels
        (constant_first, 3, False),
        (constant_last, 3, False),
    ],
)
def test_a_patch_embedding_is_found_where_it_is_all_that_is_done_with_the_images(
    first: Any, channels: int, folds: bool
) -> None:
    f, x = Patches(first).eval(), torch.randn(2, channels, 4, 4)
    f(x)
    assert find_patchify(as_encoder(f), x[:1]) is (f.patch if folds else None)
    assert not f.patch._forward_hooks
    found = jepa_score_details(f, x, estimator="auto")
    assert found.estimator == ("folded" if folds else "exact")
    torch.testing.assert_close(found.score, reference_score(f, x), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dim", "chosen"), [(1, "folded"), (12, "folded"), (13, "exact")])
def test_folding_pays_up_to_as_many_channels_as_numbers(
    monkeypatch: pytest.MonkeyPatch, dim: int, chosen: str
) -> None:
    f, x = Patches(dim=dim, padding="valid").eval(), torch.randn(2, 3, 4, 4)
    f(x)
    made = plan(monkeypatch, f, x, 2**40)
    assert made.estimator == chosen
    assert made.passes.patchify is (f.patch if chosen == "folded" else None)
    assert made.reason == (
        "the first layer is a patch embedding: exact, with fewer numbers"
        if chosen == "folded"
        else "no patch embedding comes first"
    )


def test_an_encoder_without_a_module_or_of_another_output_has_no_patch_embedding() -> None:
    x = torch.randn(1, 3, 4, 4)
    assert find_patchify(as_encoder(lambda z: z.flatten(1)), x) is None
    assert find_patchify(as_encoder(nn.Conv2d(3, 6, 2, 2)), x) is None  # its output is no (N, K)


def test_images_alone_come_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(f: Any, x: Tensor) -> bool:
        return plan(monkeypatch, f, x, 2**40, "exact").passes.channels_last

    assert taken(lambda x: x.flatten(1), torch.randn(1, 3, 4, 4))
    assert not taken(lambda x: x.view(len(x), -1), torch.randn(1, 3, 4, 4))
    assert not taken(lambda x: x.flatten(1), torch.randn(1, 3, 2, 4, 4))
    assert not taken(lambda x: x, torch.randn(1, 7))


@pytest.mark.parametrize(
    ("count", "estimator", "few_columns", "calibrates"),
    [
        (65, "exact", False, True),
        (65, "folded", False, True),
        (64, "exact", False, False),
        (65, "sketch", False, False),
        (65, "exact", True, False),
    ],
)
def test_a_tolerance_needs_inputs_to_spare_and_rows_to_leave_out(
    count: int, estimator: Any, few_columns: bool, calibrates: bool
) -> None:
    assert possible(Plan(estimator, "", 1, Passes(), 5, few_columns), count) is calibrates


def test_what_fits_is_half_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probjepa.jacobian.memory.provenance.free_memory", lambda: 1000)
    assert free_memory(CPU) == 1000
    assert [fitting(each, CPU) for each in (600, 500, 100, 1, 0)] == [0, 1, 5, 500, 500]


def test_blocks_that_torch_keeps_of_a_gpu_are_free_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(number: Any) -> Any:
        return lambda device: asked.append(device) or number

    found = SimpleNamespace(
        mem_get_info=answer((700, 9000)), memory_reserved=answer(200), memory_allocated=answer(50)
    )
    monkeypatch.setattr("probjepa.jacobian.memory.torch.cuda", found)
    assert free_memory(CUDA) == 700 + 200 - 50
    assert asked == 3 * [CUDA]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate"),
        RuntimeError("not enough memory: you tried to allocate 9 bytes"),
    ],
    ids=str,
)
def test_every_wording_of_out_of_memory_halves(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gc.collect", lambda: 0)

    def compute(rows: slice) -> range:
        if rows.stop - rows.start > 3:
            raise error
        return range(rows.start, rows.stop)

    done = list(in_chunks(8, 16, compute, "less"))  # 8 fit into 16: then 4, then 2
    assert [(rows.start, rows.stop) for rows, _, _ in done] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [list(part) for _, part, _ in done] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert {size for _, _, size in done} == {2}


@pytest.mark.parametrize("error", [RuntimeError("a shape"), ValueError("out of memory")])
def test_another_error_is_not_about_memory(error: Exception) -> None:
    def compute(rows: slice) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        list(in_chunks(8, 4, compute, "less"))


def test_the_last_chunk_is_what_is_left() -> None:
    done = list(in_chunks(7, 3, lambda rows: (rows.start, rows.stop), "less"))
    assert done == [(slice(a, b), (a, b), 3) for a, b in ((0, 3), (3, 6), (6, 7))]
    assert list(in_chunks(0, 3, lambda rows: 0, "less")) == []
