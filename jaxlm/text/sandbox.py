"""The sandbox that chat templates run in: jinja2's immutable one, with a limit to what they cost.

A template is a stranger's program. Reaching Python's insides and changing its input are refused by
jinja2; here every turn of a loop, call, printed character and value that is made is paid for from
what one rendering may spend, so that neither time nor memory runs away.
"""

import functools
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from math import inf, prod
from string import Formatter
from typing import Any, ClassVar, NoReturn

from jinja2 import Template, TemplateError, nodes, pass_context, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

COST = 1_000_000
"""What any rendering may spend: about a second."""
COST_PER_INPUT = 200
"""And on top of it for every character of the messages and other variables."""
SECONDS, SECONDS_PER_INPUT = 3.0, 3e-5
"""Of its thread's time, for what no price is right for. Ordinary chats take milliseconds."""
LOOK = 64
"""What is spent between two looks at the clock."""
MEMBERS, MEMBERS_PER_INPUT = 100_000, 20
"""Most members of one value at any depth, so that nothing that Python does with it takes long."""
CALL = 4
"""What a call costs by itself."""
GROWING = frozenset(
    {
        *("batch", "center", "expandtabs", "indent", "join", "ljust", "pprint", "rjust", "slice"),
        *("string", "sum", "to_bytes", "tojson", "translate", "urlize", "wordwrap", "xmlattr"),
        "zfill",
    }
)
"""Filters and methods whose result may be as long as the product of what they are given."""
FORMATS = ("format", "format_map")
STARRED = re.compile(r"%[^%a-zA-Z]*\*")
"""A width that is an argument, in a format string for %."""


class Run:
    """One rendering: what it may still spend, what it has written, its {% generation %} blocks."""

    def __init__(self, variables: Any):
        self.written, self.left, self.most = 0, 2**62, 2**62
        self.until, self._look = inf, 0
        self.blocks: list[tuple[int, str]] = []
        self._members: dict[int, tuple[int, Any]] = {}
        given = self.size(variables)
        self.left = COST + COST_PER_INPUT * given
        self.most = MEMBERS + MEMBERS_PER_INPUT * given
        self.until = time.thread_time() + SECONDS + SECONDS_PER_INPUT * given
        self._look = self.left

    def spend(self, cost: int) -> None:
        """Raises SecurityError when no more is left."""
        self.left -= cost
        if self.left < self._look:
            self._look = max(0, self.left - LOOK)
            if self.left < 0 or time.thread_time() > self.until:
                raise SecurityError("it computes or writes without an end")

    def size(self, value: Any) -> int:
        """Characters and members of a value, at any depth. Spends as it counts."""
        if isinstance(value, str | bytes):
            return len(value)
        parts = _parts(value)
        self.spend(len(parts))
        return 1 + sum(map(self.size, parts))

    def members(self, value: Any) -> int:
        """Of a list, tuple or dict, at any depth, each text as one. Nothing changes one later."""
        if not isinstance(value, list | tuple | dict):
            return 1
        if id(value) not in self._members:
            parts = _parts(value)
            self.spend(len(parts))
            count = 1 + sum(map(self.members, parts))
            if count > self.most:
                raise SecurityError("it makes a value without an end")
            self._members[id(value)] = count, value  # which keeps another from having its id
        return self._members[id(value)][0]

    def pay_made(self, value: Any) -> None:
        """For a value that came into being, which may hold another several times."""
        self.spend(len(value) if isinstance(value, str | bytes | range) else 1)
        self.members(value)

    def pay_call(self, name: str, values: list[Any], percent: bool = False) -> None:
        """values: what is called on and called with. percent: it formats as % does."""
        self.spend(CALL + sum(len(each) for each in values if isinstance(each, str)))
        if name in FORMATS and isinstance(values[0], str):
            wide = _widths(values[0]) if percent else _field_widths(values[0])
            self.spend(wide + prod(max(1, self.size(value)) for value in values))
        elif name == "replace" and all(isinstance(each, str) for each in values[:3]):
            text, old, new = values[:3]
            self.spend(text.count(old) * len(new))
        elif name in GROWING:
            sizes = [abs(int(v)) if isinstance(v, int | float) else self.size(v) for v in values]
            self.spend(prod(max(1, size) for size in sizes))

    def pay_operator(self, operator: str, left: Any, right: Any) -> None:
        """For one of Sandbox.intercepted_binops."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else right.bit_length())
            self.spend(1 + max(0, bits) // 64)
        elif operator == "%" and isinstance(left, str):
            self.pay_call("format", [left, right], percent=True)
        elif operator == "*":
            self.spend(prod(abs(v) if isinstance(v, int) else self.size(v) for v in (left, right)))


def _parts(value: Any) -> list[Any] | tuple[Any, ...]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


def _field_widths(form: str) -> int:
    """The sum of the widths in a format string for str.format."""
    widths = [spec or "" for _, _, spec, _ in Formatter().parse(form)]
    if any("{" in spec for spec in widths):
        raise SecurityError("a width in a format is an argument")
    return sum(int(number) for spec in widths for number in re.findall(r"\d+", spec))


def _widths(form: str) -> int:
    """As `_field_widths` for %, or more: every number after the first % counts."""
    if STARRED.search(form):
        raise SecurityError("a width in a format is an argument")
    return sum(int(number) for number in re.findall(r"\d+", form.partition("%")[2]))


RUN: ContextVar[Run] = ContextVar("RUN")
"""The rendering under way, or the compiling, which folds constants."""


@contextmanager
def running(run: Run) -> Iterator[None]:
    """What is rendered or compiled inside is paid for by `run`."""
    token = RUN.set(run)
    try:
        yield
    finally:
        RUN.reset(token)


class Generation(Extension):
    """{% generation %} ... {% endgeneration %} around what the assistant writes."""

    tags: ClassVar[set[str]] = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call that hands its text to `_note`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    @pass_eval_context
    def _note(self, context: nodes.EvalContext, caller: Callable[[], str]) -> str:
        text = caller()
        RUN.get().blocks.append((RUN.get().written, text))
        return text


class Sandbox(ImmutableSandboxedEnvironment):
    """What transformers' templates expect, and a price on everything."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
        )
        self.filters["tojson"] = _to_json
        for name, made in list(self.filters.items()):
            self.filters[name] = _paid(name, made)
        # no template can name these
        self.filters |= {"made ": _made, "printed ": _printed, "spent ": _spent, "turns ": _turns}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": Names,
        }

    def compiled(self, source: str) -> Template:
        """The template with a price on all that it does."""
        with running(Run({})):
            return self.from_string(Pricing().visit(self.parse(source)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operator's result, paid for."""
        RUN.get().pay_operator(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        RUN.get().pay_made(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """The call's result, paid for."""
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped
        on = getattr(method, "__self__", None)
        RUN.get().pay_call(getattr(method, "__name__", ""), [on, *args, *kwargs.values()])
        result = super().call(__context, __obj, *args, **kwargs)
        RUN.get().pay_made(result)
        return result


class Pricing(NodeTransformer):
    """A template's tree with filters that spend."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        """Every turn costs what stands in the loop."""
        tested = _count([node.test] if node.test else [])
        self._body(node)
        node.iter = _through("turns ", node.iter, nodes.Const(tested))
        return node

    def _body(self, node: Any) -> nodes.Node:
        cost = nodes.Const(_count(node.body))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_through("spent ", cost, lineno=node.lineno)))
        return node

    visit_Macro = visit_CallBlock = _body  # noqa: N815

    def _written(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_through("printed ", value) for value in node.nodes]
        return node

    visit_Output = visit_Concat = _written  # noqa: N815

    def _value(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        read = getattr(node, "ctx", "load") == "load"
        return _through("made ", node) if read else node

    visit_List = visit_Tuple = visit_Dict = visit_Compare = visit_Test = _value  # noqa: N815

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        """A slice is a new value."""
        self.generic_visit(node)
        return _through("made ", node) if isinstance(node.arg, nodes.Slice) else node


def _count(body: list[nodes.Node]) -> int:
    return sum(1 + sum(1 for _ in node.find_all(nodes.Node)) for node in body)


def _through(name: str, node: Any, *args: nodes.Expr, lineno: int = 0) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=lineno or node.lineno)


class Names(Namespace):
    """namespace(), without names that Python itself asks for."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # `self` may be one of the names
        names = dict(*args[1:], **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)

    def __repr__(self) -> str:  # what it holds may hold others, and each of them again
        return "<namespace>"


def _check_name(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


@pass_context  # so that it is not done once, when the template is compiled
def _printed(context: Context, value: Any) -> Any:
    run = RUN.get()
    run.spend(1 + run.size(value))
    return value


@pass_context
def _made(context: Context, value: Any) -> Any:
    RUN.get().pay_made(value)
    return value


@pass_context
def _spent(context: Context, cost: int) -> None:
    RUN.get().spend(cost)


@pass_context
def _turns(context: Context, values: Iterable[Any], cost: int) -> Iterator[Any]:
    run = RUN.get()
    for value in values:
        run.spend(1 + cost)
        yield value


def _paid(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    first = 1 if hasattr(made, "jinja_pass_arg") else 0  # jinja's own argument

    @functools.wraps(made)
    def paid(*args: Any, **kwargs: Any) -> Any:
        run = RUN.get()
        run.pay_call(name, [*args[first:], *kwargs.values()], percent=True)
        result = made(*args, **kwargs)
        run.pay_made(result)
        return result

    return paid


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As transformers' filter: jinja's own escapes what HTML would read."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
