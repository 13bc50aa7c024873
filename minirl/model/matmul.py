"""Matrix products whose inputs are narrow and whose result is wide: bfloat16 x bfloat16 accumulated, and left, in float32."""

import torch
from torch import Tensor


def matmul_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """out = left @ right.T: [n, d], [m, d] -> [n, m] in out's dtype, without gradient.

    CUDA has this for bfloat16 inputs. A CPU has not: they are widened, which is exact, and the float32 matmul precision decides whether
    the product narrows them again, which is exact too.
    """
    if out.dtype == torch.float32 and multiplies_natively(left) and multiplies_natively(right):
        torch.mm(left, right.T, out_dtype=torch.float32, out=out)
    else:
        torch.mm(left.to(out.dtype), right.to(out.dtype).T, out=out)


def multiplies_natively(matrix: Tensor) -> bool:
    """Whether `matmul_into` takes the matrix as it is; where it does not, one that is multiplied often is better widened once."""
    return matrix.is_cuda and matrix.dtype == torch.bfloat16
