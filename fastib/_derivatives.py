"""How an operator is differentiated: what PyTorch's autograd and torch.func need of it beside its kernels.

The first derivative backwards is a kernel's. All others (the second, and those forwards) are taken from the operator in
plain PyTorch, `_fallback.FORMULAS`, which takes as much memory as that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from fastib import _fallback, _vmap

Tensors = Sequence[Any]  # tensors, or None where an optional one is not given
Grads = Sequence[Any]  # the same, or None for zeros
Options = Any  # a tuple of what the operator takes after its tensors
Needed = Sequence[bool]


def apply(function: type[Differentiable], *args: Any) -> Any:
    """function.apply(*args), whose look at the signature costs 15 us, more than all the rest of a small call."""
    if transforms_are_active():
        # torch.compile knows an autograd.Function by its backward alone, and inside torch.func not even by that.
        if torch.compiler.is_compiling():
            return function.in_plain_pytorch(*args)
        return function.forwards.apply(*args)
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting():
            return function.exported(*args)
        return function.apply(*_distinct(args))
    return function.directly(*args)


def transforms_are_active() -> bool:
    """Whether torch.func, or forward-mode differentiation, looks on."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _distinct(args: tuple[Any, ...]) -> Iterator[Any]:
    """A tensor may come twice, as z and mu, or as a posterior and a prior; torch.compile refuses to trace that."""
    seen: list[Tensor] = []
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg.view_as(arg) if any(arg is other for other in seen) else arg
            seen.append(arg)
        else:
            yield arg


class Differentiable(Function):
    """An operator that autograd knows. A subclass has `forward`, and `gradients(needed, grads, tensors, options)`,
    which gives one for each tensor, None where it isn't needed; the rest is `differentiable`'s."""

    generate_vmap_rule = True
    tensors: ClassVar[int]
    gradients: ClassVar[Callable[..., Grads]]
    formula: ClassVar[Callable[..., tuple[Tensor, ...]]]
    in_plain_pytorch: ClassVar[Callable[..., Any]]
    directly: ClassVar[Callable[..., Any]]
    exported: ClassVar[Callable[..., Any]]
    forwards: ClassVar[type[Function]]


_library = torch.library.Library("fastib", "FRAGMENT")
_Class = TypeVar("_Class", bound=type[Differentiable])


def differentiable(
    operator: Any,
    tensors: int,
    results: int | None = None,
    of_first: tuple[int, ...] = (),
    kept: Callable[..., tuple[Any, ...]] | None = None,
) -> Callable[[_Class], _Class]:
    """Completes the class of `operator`, of whose arguments so many are `tensors` and the others options.

    Where `results` is given, the operator returns one more, which the gradients want to know. `of_first` are the
    tensors that its first result alone depends on. `kept` says what stands for the tensors until the backward pass: a
    tensor in which the operator is linear need not be kept, only something of its shape.
    """

    in_plain_pytorch = _fallback.FORMULAS[operator._opname]

    def formula(*args: Any) -> tuple[Tensor, ...]:
        out = in_plain_pytorch(*args)
        return out[:results] if isinstance(out, tuple) else (out,)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.options = inputs[tensors:]
        if results is None:
            ctx.save_for_backward(*(inputs[:tensors] if kept is None else kept(*inputs[:tensors])))
        else:
            ctx.mark_non_differentiable(output[-1])
            ctx.save_for_backward(*inputs[:tensors], output[-1])

    def complete(cls: _Class) -> _Class:
        def backward(ctx: Any, *grads: Any) -> Any:
            saved = ctx.saved_tensors  # once: activation checkpointing gives them out only once
            options, needed = ctx.options, ctx.needs_input_grad[:tensors]
            if results is not None:
                grads = grads[:results]
            if grads[0] is None:
                needed = tuple(n and i not in of_first for i, n in enumerate(needed))
                if all(grad is None for grad in grads):
                    return (None,) * (tensors + len(options))
            if torch.is_grad_enabled() and not torch.compiler.is_compiling():
                found = _differentiable_gradients(cls, needed, grads, saved, options)
            else:
                found = cls.gradients(needed, grads, saved, options)
            return *found, *(None,) * len(options)

        cls.tensors = tensors
        cls.formula = staticmethod(formula)
        cls.in_plain_pytorch = staticmethod(in_plain_pytorch)
        cls.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
        cls.backward = staticmethod(backward)  # type: ignore[method-assign]
        cls.directly = super(Function, cls).apply  # type: ignore[misc]
        cls.exported = staticmethod(_of_exported_graphs(cls, operator))
        cls.forwards = _with_forward_mode(cls, tensors, results)
        return cls

    return complete


def _with_forward_mode(of: type[Differentiable], count: int, results: int | None) -> type[Function]:
    """A twin that can be differentiated forwards, too, which torch.compile refuses to trace."""

    class Forwards(Function):
        generate_vmap_rule = True
        forward = of.forward
        backward = of.backward

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            of.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*inputs[:count])

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            found = _push(of.formula, ctx.saved_tensors[:count], ctx.options, tangents[:count])
            return (*found, None) if results is not None else found if len(found) > 1 else found[0]

    return Forwards


def _of_exported_graphs(function: type[Differentiable], operator: Any) -> Callable[..., Any]:
    """A twin of the operator that autograd knows: an exported graph has no autograd.Function, and it may be trained.

    Not the operator itself, since calls that have an autograd.Function would pay 15 us for a second one.
    """
    schema = str(operator._schema).removeprefix("fastib::")
    _library.define(schema.replace("(", ".differentiable(", 1))
    twin = getattr(torch.ops.fastib, operator._opname).differentiable

    def with_autograd(*args: Any) -> Any:
        if torch.is_grad_enabled():
            return (function.in_plain_pytorch if transforms_are_active() else function.directly)(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return twin(*args)

    name = f"{operator._opname}.differentiable"
    _library.impl(name, lambda *args: operator(*args), "CompositeExplicitAutograd")
    _library.impl(name, with_autograd, "Autograd")
    torch.library.register_fake(twin, operator, lib=_library)
    torch.library.register_vmap(twin, _vmap.rule(operator._opname, twin), lib=_library)
    return cast(Callable[..., Any], twin)


class _Call:
    """Of an operator's gradients: all but the tensors. To torch.func it is one thing, which a tuple isn't."""

    def __init__(self, of: type[Differentiable], needed: Needed, results: int, options: Options) -> None:
        self.of, self.needed, self.results, self.options = of, needed, results, options
        self.wanted = [i for i, n in enumerate(needed) if n]

    def by_kernel(self, *tensors: Any) -> tuple[Tensor, ...]:
        found = self.of.gradients(self.needed, tensors[: self.results], tensors[self.results :], self.options)
        chosen = [found[i] for i in self.wanted]
        chosen = [g.view_as(g) if any(g is t for t in tensors) else g for g in chosen]  # an output is no input
        return tuple(g.clone() if 0 in g.stride() else g for g in chosen)  # and torch.func writes to it

    def in_plain_pytorch(self, *tensors: Any) -> tuple[Tensor, ...]:
        inputs = tensors[self.results :][: self.of.tensors]
        return _pull(self.of.formula, inputs, self.options, self.wanted, tensors[: self.results])


def _differentiable_gradients(
    of: type[Differentiable], needed: Needed, grads: Grads, tensors: Tensors, options: Options
) -> Grads:
    """What `of.gradients` gives, as functions of all that it depends on."""
    found = iter(_Gradients.apply(_Call(of, needed, len(grads), options), *grads, *tensors) if any(needed) else ())
    return tuple(next(found) if n else None for n in needed)


class _Gradients(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(call: _Call, *tensors: Any) -> tuple[Tensor, ...]:
        return call.by_kernel(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call = inputs[0]
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        wanted = [i for i, n in enumerate(ctx.needs_input_grad[1:]) if n]
        found = iter(_pull(ctx.call.in_plain_pytorch, ctx.saved_tensors, (), wanted, grads))
        return None, *(next(found) if n else None for n in ctx.needs_input_grad[1:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _push(ctx.call.in_plain_pytorch, ctx.saved_tensors, (), tangents[1:])


def _pull(
    function: Callable[..., tuple[Tensor, ...]], tensors: Tensors, options: Options, wanted: Sequence[int], grads: Grads
) -> tuple[Tensor, ...]:
    """Backwards: the gradients of function(*tensors, *options) by the wanted ones of the tensors."""

    def of_wanted(*chosen: Tensor) -> tuple[Tensor, ...]:
        replaced = dict(zip(wanted, chosen, strict=True))
        return function(*(replaced.get(i, t) for i, t in enumerate(tensors)), *options)

    outputs, pull, *_ = torch.func.vjp(of_wanted, *(tensors[i] for i in wanted))
    found: tuple[Tensor, ...] = pull(
        tuple(torch.zeros_like(out) if grad is None else grad for out, grad in zip(outputs, grads, strict=True))
    )
    return found


def _push(
    function: Callable[..., tuple[Tensor, ...]], tensors: Tensors, options: Options, tangents: Tensors
) -> tuple[Tensor, ...]:
    """Forwards. What `_pull` gives is linear in the gradients, and this its transpose: PyTorch's own forward mode does
    not nest."""
    moving = [i for i, t in enumerate(tangents) if t is not None]

    def pull(*grads: Tensor) -> tuple[Tensor, ...]:
        return _pull(function, tensors, options, moving, grads)

    _, push, *_ = torch.func.vjp(pull, *map(torch.zeros_like, function(*tensors, *options)))
    found: tuple[Tensor, ...] = push(tuple(tangents[i] for i in moving))
    return found
