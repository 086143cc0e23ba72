"""Random numbers of the host for a network on another device: those of a whole pass go there in one copy.

The draws of stochastic depth come from the CPU's generator, so that the host knows which samples drop a branch and the
device computes the others only. A copy for each of them would make the host wait at every block. So a network keeps a
list of what its last pass asked for (:class:`PassDraws`); the next pass draws the same requests in the same order when
it begins, sends all of them at once, and hands them out. Every request gets the numbers that it would get on a CPU,
where each is drawn when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

__all__ = ["PassDraws", "drawn", "repeated", "send", "uniform"]

#: Tensors begin at multiples of so many bytes in a copy of several, which suits every type.
ALIGNMENT = 8

#: A function that draws CPU tensors from torch's generator, and its plain arguments.
Request = tuple[Callable[..., tuple[Tensor, ...]], tuple]

_current: _Pass | None = None


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return CPU tensors on a device, by one copy that the host does not wait for; on the CPU they are as they were."""
    if device.type == "cpu":
        return list(tensors)
    starts, end = [], 0
    for tensor in tensors:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = torch.empty(end, dtype=torch.uint8, pin_memory=device.type == "cuda")

    def part(whole: Tensor, start: int, like: Tensor) -> Tensor:
        return whole[start : start + like.nbytes].view(like.dtype).view(like.shape)

    for tensor, start in zip(tensors, starts, strict=True):
        part(packed, start, tensor).copy_(tensor)
    packed = packed.to(device, non_blocking=True)
    return [part(packed, start, tensor) for tensor, start in zip(tensors, starts, strict=True)]


def drawn(draw: Callable[..., tuple[Tensor, ...]], *arguments, device: torch.device) -> tuple[Tensor, ...]:
    """Return ``draw(*arguments)``, CPU tensors from torch's generator, on a device.

    Args:
        draw: a function of a module, which is compared with the requests of the pass before.
        arguments: plain values.
        device: where the tensors are wanted.
    """
    if device.type == "cpu":
        return draw(*arguments)
    if _current is None:
        return tuple(send(draw(*arguments), device))
    return _current.take((draw, arguments))


def uniform(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return uniform numbers on a device: those of the CPU's generator, or in a compiled graph the device's own."""
    if torch.compiler.is_compiling():
        return torch.rand(shape, device=device)
    return drawn(_uniform, shape, device=device)[0]


def _uniform(shape: tuple[int, ...]) -> tuple[Tensor]:
    return (torch.rand(shape),)


def repeated() -> Callable[[], AbstractContextManager[None]]:
    """Return what makes a block in which the requests from here on get the same numbers again.

    A block of a network that is run a second time, for the backward pass, needs it.
    """
    return nullcontext if _current is None else partial(_current.again, _current.position)


class PassDraws:
    """The draws that a network's last pass in training asked for."""

    def __init__(self):
        self.requests: list[Request] = []

    @contextmanager
    def sent_to(self, device: torch.device) -> Iterator[None]:
        """Draw for a pass of the network inside the block."""
        global _current
        if device.type == "cpu" or _current is not None:
            yield
            return
        _current = _Pass(self.requests, device)
        try:
            yield
        finally:
            self.requests = _current.end()
            _current = None


class _Pass:
    """The draws of one pass: those that the pass before leads to expect, then whatever else is asked for."""

    def __init__(self, expected: list[Request], device: torch.device):
        self.expected, self.device = expected, device
        self.made: list[Request] = []
        self.state = torch.get_rng_state()
        tensors = [draw(*arguments) for draw, arguments in expected]
        sent = iter(send([tensor for part in tensors for tensor in part], device) if expected else ())
        self.sent = [tuple(next(sent) for _ in part) for part in tensors]
        #: Requests that came as expected, and the number of the next one.
        self.served, self.position = 0, 0
        self.repeating = False

    def take(self, request: Request) -> tuple[Tensor, ...]:
        """Return what a request draws, on the device."""
        number, self.position = self.position, self.position + 1
        if self.repeating and number < self.served:
            return self.sent[number]
        if not self.repeating:
            self.made.append(request)
            if self.served == number and self.expected[number : number + 1] == [request]:
                self.served += 1
                return self.sent[number]
            self._put_back()
        draw, arguments = request
        return tuple(send(draw(*arguments), self.device))

    def end(self) -> list[Request]:
        """Return what was asked for."""
        self._put_back()
        return self.made

    def _put_back(self) -> None:
        """Put the generator to where it stands after the requests that came as expected."""
        if self.served < len(self.expected):
            torch.set_rng_state(self.state)
            for draw, arguments in self.expected[: self.served]:
                draw(*arguments)
            self.expected = self.expected[: self.served]

    @contextmanager
    def again(self, number: int) -> Iterator[None]:
        """Hand out once more what was handed out from request ``number`` on, inside the block."""
        global _current
        before = _current, self.position, self.repeating
        _current, self.position, self.repeating = self, number, True
        try:
            yield
        finally:
            _current, self.position, self.repeating = before
