"""What would make a training step wait for a GPU, noticed on any device."""

from collections.abc import Iterator
from contextlib import contextmanager
import sys

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# what hands values to the host without an operation that the dispatcher sees
READS = {
    getattr(Tensor, name): name
    for name in (
        *(
            "item",
            "tolist",
            "numpy",
            "cpu",
            "__array__",
            "__dlpack__",
            "__repr__",
            "__format__",
            "__reduce_ex__",
        ),
        *("__bool__", "__float__", "__int__", "__index__", "__complex__", "__contains__"),
    )
}
# who may take a numpy array: what is on a GPU has none (torch raises), so that these can't hide that somebody waits
HOST = {
    ("dcvit.draws", "sparse_noise"),  # how many numbers to draw, where the images are on the CPU
    ("dcvit.draws", "_extents"),  # which rectangles, likewise
    ("dcvit.erasing", "_sorted"),  # asks for the device itself
    ("dcvit.transform", "_erased"),  # noise for erased pixels only, which there is for images on the CPU
}
# operations whose result, or the size of it, the host must know
SIZED = {
    *(
        "_local_scalar_dense",
        "item",
        "is_nonzero",
        "equal",
        "allclose",
        "nonzero",
        "nonzero_numpy",
        "argwhere",
    ),
    *("masked_select", "unique_dim", "unique_consecutive", "_unique", "_unique2", "bincount", "tensor_split"),
}
MASKED = {"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"}  # with a mask: sized by it


class Waited(AssertionError):
    """The step would have waited for a GPU."""


class _Python(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), options=None):
        options = options or {}
        if function in READS:
            asking = sys._getframe(1)
            if function is Tensor.numpy and (asking.f_globals["__name__"], asking.f_code.co_name) in HOST:
                return function(*arguments, **options)
            raise Waited(f"Tensor.{READS[function]}")
        if function in (torch.tensor, torch.as_tensor, torch.asarray) and "device" in options:
            raise Waited(f"torch.{function.__name__}: values of the host, to a device at once")
        if function is Tensor.to:
            targets = [*arguments[1:], options.get("device")]
            # by name: what moves to the state's device says so by `state.device`, which may be the CPU
            if any(target == "cpu" for target in targets if isinstance(target, str)):
                raise Waited('Tensor.to("cpu")')
        return function(*arguments, **options)


class _Dispatched(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name in SIZED:
            raise Waited(f"aten::{name}")
        if name in MASKED and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        ):
            raise Waited(f"aten::{name} with a mask")
        if name == "repeat_interleave" and (options or {}).get("output_size") is None:
            raise Waited("aten::repeat_interleave of so many times as a tensor says")
        return function(*arguments, **(options or {}))


@contextmanager
def never_waits() -> Iterator[None]:
    """Raises Waited where something inside reads a tensor, directly or for the size of a result."""

    def waited(*_: object, **__: object) -> None:
        raise Waited("synchronize")

    kept = torch.cuda.synchronize, torch.cuda.Event.synchronize, torch.cuda.Stream.synchronize
    torch.cuda.synchronize = torch.cuda.Event.synchronize = torch.cuda.Stream.synchronize = waited
    try:
        with _Python(), _Dispatched():
            yield
    finally:
        torch.cuda.synchronize, torch.cuda.Event.synchronize, torch.cuda.Stream.synchronize = kept
