"""Matrix products with narrow inputs and a wide result: bfloat16 x bfloat16, accumulated and returned in float32."""

import torch
from torch import Tensor


def matmul_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out = left @ right.T: [n, d], [m, d] -> [n, m] in the dtype of `out`, without gradient.

    CUDA multiplies bfloat16 inputs into a float32 result. A CPU cannot, so the inputs are widened first, which is exact. The float32 matmul
    precision setting decides whether the product narrows them again, which is exact too.
    """
    if out.dtype == torch.float32 and multiplies_natively(left) and multiplies_natively(right):
        torch.mm(left, right.T, out_dtype=torch.float32, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype).T, out=out)


def multiplies_natively(matrix: Tensor) -> bool:
    """Whether `matmul_into` can multiply the matrix without widening it. If not, widen a matrix once that is multiplied often."""
    return matrix.is_cuda and matrix.dtype == torch.bfloat16
