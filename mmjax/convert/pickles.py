"""Reading a pickle as data: its instructions build containers and descriptions, and nothing is imported or called.

`pickle` runs a program that may import and call anything. Here the program is stepped through by hand: a global is a name, a call is
allowed for the few names that PyTorch's files need and answered by a description of a tensor, and every other call ends the reading.
"""

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from mmjax.core.errors import UserError

_MAX_STEPS = 20_000_000  # instructions; a state dict of a thousand tensors has about 50 thousand


@dataclasses.dataclass(frozen=True)
class Global:
    """`module.name`, which would have been imported."""

    name: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Numbers in another entry of the archive. `kind` is PyTorch's class, such as `FloatStorage`."""

    kind: str
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class TensorView:
    """A tensor as PyTorch pickles it: a window on a storage, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Object:
    """An instance of a class of TorchScript: only what is in it. Attributes are filled in by the pickle."""

    def __init__(self, kind: str):
        self.kind, self.attributes = kind, {}


class _Mark:
    pass


def _ints(x: Any) -> tuple[int, ...]:
    if not isinstance(x, tuple | list) or len(x) > 32 or not all(type(n) is int and abs(n) < 2**63 for n in x):
        raise ValueError("a tensor without shape or strides")
    return tuple(x)


def _key(x: Any) -> Any:
    """Keys are scalars: hashing or printing what is nested can take a pickle of a kilobyte all the stack and memory there is."""
    if not isinstance(x, str | int | float | bytes | None):
        raise ValueError(f"a {type(x).__name__} as a key")
    return x


def _dict(items: Any = ()) -> dict[Any, Any]:
    return {_key(key): value for key, value in items}


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> TensorView:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    return TensorView(storage, *_ints([offset]), _ints(shape), _ints(strides))


# The only calls answered. PyTorch's own names; none of them is run.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *rest: data,
    "collections.OrderedDict": _dict,
    "torch.Size": lambda items=(): tuple(items),
    "torch.device": lambda *names: None,
    **{f"torch.jit._pickle.build_{kind}list": lambda items: items for kind in ("int", "bool", "double", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
}


def load(data: bytes, what: str) -> Any:
    """The object a pickle describes: dicts, lists, tuples, scalars, and the classes above.

    Raises:
      UserError: a pickle that calls or builds anything but tensors and containers, or is damaged; `what` names it.
    """
    machine = _Machine(what)
    try:
        for count, (op, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_STEPS:
                raise UserError(f"{what}: a pickle of more than {_MAX_STEPS} instructions; refused")
            if op.name == "STOP":
                return machine.stack.pop()
            machine.step(op.name, argument)
        raise ValueError("it does not end")
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as e:
        raise UserError(f"{what}: a damaged pickle ({type(e).__name__}: {str(e)[:80]})") from None


class _Machine:
    """The pickle machine's stack and memo, on inert values."""

    def __init__(self, what: str):
        self.what, self.stack, self.memo = what, [], {}

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in ("PROTO", "FRAME"):
            pass
        else:
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise UserError(f"{self.what}: pickle instruction {name} is not one of a file of tensors; refused")
            method(argument)

    def marked(self) -> list[Any]:
        """What was pushed since the last mark."""
        i = len(self.stack) - 1
        while not isinstance(self.stack[i], _Mark):
            i -= 1
            if i < 0:
                raise ValueError("no mark")
        items = self.stack[i + 1 :]
        del self.stack[i:]
        return items

    def remember(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def do_mark(self, _):
        self.stack.append(_Mark())

    def do_pop(self, _):
        self.stack.pop()

    def do_empty_dict(self, _):
        self.stack.append({})

    def do_empty_list(self, _):
        self.stack.append([])

    def do_binput(self, i):
        self.remember(i)

    do_long_binput = do_binput

    def do_memoize(self, _):
        self.remember(len(self.memo))

    def do_binget(self, i):
        self.stack.append(self.memo[i])

    do_long_binget = do_binget

    def do_tuple(self, _):
        self.stack.append(tuple(self.marked()))

    def do_tuple1(self, _):
        self.pack(1)

    def do_tuple2(self, _):
        self.pack(2)

    def do_tuple3(self, _):
        self.pack(3)

    def pack(self, n: int) -> None:
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.stack.append(items)

    def do_append(self, _):
        item = self.stack.pop()
        self.of_kind(list).append(item)

    def do_appends(self, _):
        items = self.marked()
        self.of_kind(list).extend(items)

    def do_setitem(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.put(key, value)

    def do_setitems(self, _):
        items = self.marked()
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.put(key, value)

    def put(self, key: Any, value: Any) -> None:
        self.of_kind(dict)[_key(key)] = value

    def of_kind(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"{type(self.stack[-1]).__name__} where a {kind.__name__} is filled")
        return self.stack[-1]

    def do_global(self, names):
        self.stack.append(Global(names.replace(" ", ".", 1)))

    def do_stack_global(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a global without a name")
        self.stack.append(Global(f"{module}.{name}"))

    def do_reduce(self, _):
        arguments, function = self.stack.pop(), self.stack.pop()
        name = function.name if isinstance(function, Global) else type(function).__name__
        if name not in _CALLS:
            raise UserError(
                f"{self.what}: its pickle calls {name!r}, which is no part of a file of tensors; nothing was run, the file is refused"
            )
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        self.stack.append(_CALLS[name](*arguments))

    def do_newobj(self, _):
        self.stack.pop()
        kind = self.stack.pop()
        if not isinstance(kind, Global) or not kind.name.startswith("__torch__."):
            name = kind.name if isinstance(kind, Global) else type(kind).__name__
            raise UserError(f"{self.what}: its pickle makes an object of {name!r}, not a tensor; nothing was run, the file is refused")
        self.stack.append(Object(kind.name))

    def do_build(self, _):
        state = self.stack.pop()
        if isinstance(self.stack[-1], Object) and isinstance(state, dict):
            self.stack[-1].attributes.update(state)
        # Else notes that PyTorch hangs on a state dict (`_metadata`), which hold no weights.

    def do_binpersid(self, _):
        match self.stack.pop():
            case ("storage", Global(name=name), str(key), _, int(size)) if name.startswith("torch.") and name.endswith("Storage"):
                self.stack.append(Storage(name.removeprefix("torch."), key, size))
            case _:
                raise ValueError("a reference to something that is no storage")


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_LITERALS = (
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
)
