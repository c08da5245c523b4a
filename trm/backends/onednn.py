"""Linear layers in float32 on a CPU through oneDNN, which torch's own float32 products do not use.

torch.mm calls MKL, which uses narrower vectors than it could on processors that are not Intel's: on a Zen 5 oneDNN's products are
twice as fast, at the same precision (bench/RESULTS.md). oneDNN reads transposed operands in place, so nothing is copied.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_library = torch.library.Library("trm", "DEF")  # type: ignore[no-untyped-call]
_library.define("product_nt(Tensor a, Tensor b) -> Tensor")  # type: ignore[no-untyped-call]
_BUILT_WITH = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


def usable(tensor: Tensor) -> bool:
    """Whether oneDNN takes such a tensor: float32 on a CPU for which this torch was built with oneDNN."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu" and _BUILT_WITH


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` without bias, [..., in] and [out, in] to [..., out], by oneDNN where it is usable; it has gradients."""
    if not usable(x):
        return F.linear(x, weight)
    out: Tensor = _Linear.apply(x.reshape(-1, x.shape[-1]), weight)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _product_nt(x_NI, weight_OI)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_NO = grads[0].contiguous()
        # the sum over N is fastest with the smaller side in front
        if weight_OI.shape[0] <= weight_OI.shape[1]:
            grad_weight_OI = _product_nt(grad_NO.t(), x_NI.t())
        else:
            grad_weight_OI = _product_nt(x_NI.t(), grad_NO.t()).t().contiguous()
        return _product_nt(grad_NO, weight_OI.t()), grad_weight_OI


def _product_nt(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """a @ b.t(), [M, N], by an operator of its own: inductor would copy the operands of oneDNN's operator into rows first."""
    out: Tensor = torch.ops.trm.product_nt(a_MK, b_NK)
    return out


for _key, _product in (
    ("CPU", lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")),
    ("Meta", lambda a, b: a.new_empty(a.shape[0], b.shape[0])),
):
    _library.impl("product_nt", _product, _key)  # type: ignore[no-untyped-call]
