"""Both ends of the Hessian's spectrum, and what they say of a learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.linalg import norm  # which neither overflows nor underflows
from torch import Tensor

from .._errors import NOT_NEGATIVE, POSITIVE, check_int, check_number, message, one_of
from .._per_sample import per_sample_grads
from .._per_sample._function import PerSampleGradsFunction
from .._report import Report, Table, jsonable, number
from .._tree import Tensors, splatted
from ._ends import Array, Products, by_lanczos, by_matrix
from ._hessian import MeanHessian

CALL = "gf.quantities.hessian_extremes(loss, params, batch)"
DENSE = 500  # below, the whole matrix is there in a fraction of a second, and nothing can be missed


@dataclass(frozen=True)
class Eigenpair:
    """An eigenvalue of the Hessian.

    Attributes:
        value: v' H v.
        residual: |H v - value v|: an eigenvalue lies within this distance of `value`.
        vector: v, `{name: tensor}` of length 1, float64 on the CPU; its sign is arbitrary.
    """

    value: float
    residual: float
    vector: Tensors = field(repr=False, compare=False)


@dataclass(frozen=True)
class HessianExtremes(Report):
    """What `gf.quantities.hessian_extremes` found.

    Attributes:
        largest: the largest eigenvalues, the first first.
        smallest: the smallest ones, the first first.
        size: P, the number of entries of the parameters.
        weight: the total weight of the batch.
        method: "dense" or "lanczos".
        dtype: the precision of the products.
        products: how many Hessian-vector products it took.
        tol: residuals were asked to be within this share of the largest magnitude.
    """

    largest: tuple[Eigenpair, ...]
    smallest: tuple[Eigenpair, ...]
    size: int
    weight: float
    method: str
    dtype: str
    products: int
    tol: float

    @property
    def sharpness(self) -> float:
        """The largest eigenvalue."""
        return self.largest[0].value

    @property
    def norm(self) -> float:
        """The largest magnitude of an eigenvalue, at whichever end: what power iteration is after."""
        return max(abs(self.largest[0].value), abs(self.smallest[0].value))

    @property
    def critical_lr(self) -> float:
        """2 / sharpness: the learning rate above which gradient descent diverges on the quadratic model; inf at <= 0.

        Example:
            >>> import torch, gradfunc as gf
            >>> params, x = {"w": torch.tensor([1.0])}, torch.tensor([[1.0], [3.0]])
            >>> gf.quantities.hessian_extremes(lambda p, x: (p["w"] * x).square().sum(), params, x).critical_lr
            0.2
        """
        return 2 / self.sharpness if self.sharpness > 0 else math.inf

    def stability(self, lr: float) -> float:
        """`sharpness * lr / 2`: above 1, a step of gradient descent overshoots the steepest direction and grows there.

        It tells a learning rate's explosion from one of depth. If training explodes where this is above 1, or has come
        close to 1, a smaller learning rate or a target of a smaller scale cures it; where gradients grow from layer to
        layer, it may be small. (On the quadratic model; of momentum b, the limit is at 1 + b, not 1. Cohen et al. 2021,
        "Gradient descent on neural networks typically occurs at the edge of stability", arXiv 2103.00065.)

        Args:
            lr: the learning rate, >= 0.

        Raises:
            TypeError, ValueError: something else.

        Example:
            >>> import torch, gradfunc as gf
            >>> params, x = {"w": torch.tensor([1.0])}, torch.tensor([[1.0], [3.0]])
            >>> found = gf.quantities.hessian_extremes(lambda p, x: (p["w"] * x).square().sum(), params, x)
            >>> found.stability(0.1), found.stability(0.3)    # w becomes (1 - 10 lr) w
            (0.5, 1.5)
        """
        check_number("HessianExtremes.stability(lr)", "lr", lr, NOT_NEGATIVE)
        return self.sharpness * lr / 2

    @property
    def ok(self) -> bool:
        """Whether every residual is within `tol` of the largest magnitude; no verdict on the curvature."""
        return all(pair.residual <= self.tol * self.norm for pair in (*self.largest, *self.smallest))

    def parts(self) -> Sequence[Table | str]:
        """Tables in reading order."""
        ends = [("largest", self.largest), ("smallest", self.smallest)]
        rows = [
            [end if k == 0 else f"{end}, {k + 1}", f"{pair.value:.6g}", number(pair.residual)]
            for end, pairs in ends
            for k, pair in enumerate(pairs)
        ]
        how = f"{self.method}, {self.products} Hessian-vector products in {self.dtype}"
        table = Table(
            f"Hessian of the mean loss ({self.size} parameters, {how})",
            ["eigenvalue", "value", "residual"],
            rows,
            "residual: |H v - value v|; an eigenvalue lies within this distance.",
        )
        lines = [f"Gradient descent is stable on the quadratic model up to a learning rate of {self.critical_lr:.6g}."]
        if self.smallest[0].value < 0 and self.norm > self.sharpness:
            lines.append("The most negative eigenvalue is the larger in magnitude: power iteration would find that.")
        if not self.ok:
            lines.append(f"Verdict: a residual exceeds {self.tol:g} of the largest magnitude.")
        return [table, "\n".join(lines)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the fields without vectors, `sharpness`, `critical_lr`, `ok`."""

        def listed(pairs: Sequence[Eigenpair]) -> list[dict[str, float]]:
            return [{"value": pair.value, "residual": pair.residual} for pair in pairs]

        out: dict[str, Any] = jsonable(
            {
                "largest": listed(self.largest),
                "smallest": listed(self.smallest),
                "size": self.size,
                "weight": self.weight,
                "method": self.method,
                "dtype": self.dtype,
                "products": self.products,
                "tol": self.tol,
                "sharpness": self.sharpness,
                "critical_lr": self.critical_lr,
                "ok": self.ok,
            }
        )
        return out


def hessian_extremes(
    loss: Callable[..., Any] | PerSampleGradsFunction,
    params: Mapping[str, Tensor],
    batch: Any,
    *,
    k: int = 1,
    method: str = "auto",
    dtype: torch.dtype | None = None,
    tol: float = 1e-6,
    max_products: int = 1000,
    seed: int = 0,
    **options: Any,
) -> HessianExtremes:
    """The k largest and the k smallest eigenvalues of the Hessian of a batch's mean loss `sum n_i / sum w_i`.

    "lanczos" is ARPACK's restarted Lanczos iteration, with reorthogonalisation, for both ends at once (Lehoucq,
    Sorensen, Yang 1998, "ARPACK users' guide"), from a random vector; it holds 20 vectors, and 80 once these have not
    converged in 100 products. An eigenvalue that is there several times may be found fewer times. "dense" forms the
    P x P matrix by P products and misses nothing. Each pair comes with its residual, measured with a product of its
    own: an eigenvalue of a symmetric matrix lies within that distance (Parlett 1998, "The symmetric eigenvalue
    problem", theorem 4.5.1).

    Args:
        loss: a loss of one sample, one of a whole batch with `batched=True`, or a `gf.per_sample_grads(...)` function.
        params: `{name: tensor}`.
        batch: a mapping is passed on as keywords, a tuple or list as positionals, anything else as one positional.
        k: how many from each end, at least 1; no more than there are.
        method: "auto" (dense below 500 entries), "dense" or "lanczos".
        dtype: what floating parameters and batch are cast to; None: float64 if the loss runs in it (what it closes over
            is not cast), else their own.
        tol: residuals of Lanczos are within this share of the largest magnitude, rounding aside.
        max_products: a limit on those of Lanczos.
        seed: of the start vector, and of draws inside the loss.
        options: those of `gf.per_sample_grads`, such as `wrt`; none for a function that was made by it. With an int
            as `chunk_size` the graph of one chunk lives at a time, and is made again for each product; otherwise that
            of the whole batch is kept. Engine "loop" runs samples one by one, as do losses that torch.func cannot run.

    Raises:
        TypeError: options beside a function that has its own, or what `gf.per_sample_grads` refuses.
        ValueError: another option; no sample of weight above 0; second derivatives that are not finite; a loss with
            clipped cotangents; as many eigenvalues asked of Lanczos as there are.
        RuntimeError: Lanczos has not converged within `max_products`; an operation without second
            derivative in torch.

    Example:
        >>> import torch, gradfunc as gf
        >>> def loss(p, x):
        ...     return p["a"] * x * p["b"]
        >>> params = {"a": torch.ones(()), "b": torch.ones(())}
        >>> found = gf.quantities.hessian_extremes(loss, params, torch.tensor([3.0]))
        >>> round(found.sharpness, 6), round(found.smallest[0].value, 6), found.ok
        (3.0, -3.0, True)
    """
    check_int(CALL, "k", k, 1)
    check_int(CALL, "max_products", max_products, 1)
    check_int(CALL, "seed", seed, 0)
    one_of(CALL, "method", method, ("auto", "dense", "lanczos"))
    check_number(CALL, "tol", tol, POSITIVE)
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(message(CALL, got=f"dtype={dtype!r}", expected="a floating torch.dtype, or None"))
    if isinstance(loss, PerSampleGradsFunction):
        if options:
            got = f"options {sorted(options)} beside a function that has its own"
            raise TypeError(message(CALL, got=got, expected="none", do="Give them to gf.per_sample_grads."))
        f = loss
    else:
        f = per_sample_grads(loss, seed=seed, **options)
    args, kwargs = splatted(batch)
    hessian = MeanHessian.of(CALL, f, (params, args, kwargs), dtype)
    size = hessian.size
    if size == 0:
        raise ValueError(message(CALL, got="parameters without an entry", expected="at least one"))
    products = Products(CALL, hessian)
    dense = method == "dense" or (method == "auto" and size < max(DENSE, 2 * k + 1))
    if not dense and 2 * k >= size:
        got = f"k={k} from each end of {size} eigenvalues, by method='lanczos'"
        raise ValueError(message(CALL, got=got, expected="2 k below their number", do="Pass method='dense'."))
    vectors = by_matrix(products) if dense else by_lanczos(products, k, tol=tol, limit=max_products, seed=seed)
    count = min(k, size)
    low = [_pair(products, vector) for vector in vectors.T[:count]]
    high = [_pair(products, vector) for vector in vectors.T[::-1][:count]]
    return HessianExtremes(
        largest=tuple(sorted(high, key=lambda pair: -pair.value)),
        smallest=tuple(sorted(low, key=lambda pair: pair.value)),
        size=size,
        weight=hessian.weight,
        method="dense" if dense else "lanczos",
        dtype=str(hessian.dtype).removeprefix("torch."),
        products=products.count,
        tol=float(tol),
    )


def _pair(products: Products, vector: Array) -> Eigenpair:
    vector = vector / norm(vector)
    image = products(vector)
    value = float(vector @ image)
    named = {name: piece.clone() for name, piece in products.hessian.named(torch.from_numpy(vector)).items()}
    return Eigenpair(value, float(norm(image - value * vector)), named)
