"""What users build topologies with: `Builder`, `Stream[K, V]`, `Table[K, V]`.

`map` and `flat_map` call the function with (key, value); `map_values`, `filter`, `branch`, `key_by` with the value. A
value of None is a deletion: it deletes the row at a sink, a state of None is removed, and a topic whose type says so
(`value=T | None`) gets a tombstone; any other refuses it, because a function that forgot its `return` gives None too.

Whatever cannot be right is refused here, with the line of the user's program: two states of one name, a type without a
serde, a topic that feeds itself, a weak sink without `accept=`.

Invariant: names of internal topics and states are given by the user or derived from what they denote; adding or
removing an operator elsewhere renames nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, overload

import msgspec

from semel.contract import Accept, AtLeastOnce, AtMostOnce, Guarantee, Once, Weak, cannot_leave_out
from semel.ports import Sink
from semel.streams import graph as g
from semel.streams.deletes import check as check_deletes
from semel.streams.infer import element_type, result_type, state_type, why_untold, without_none
from semel.streams.place import GraphError, Place, caller, describe
from semel.streams.serde import SCALARS, NoSerde, Serde, hashable, immutable, serde_of, type_name
from semel.streams.shape import finish
from semel.streams.topic import OnError, Topic, check_name

K = TypeVar("K")
V = TypeVar("V")
K2 = TypeVar("K2")
R = TypeVar("R")
A = TypeVar("A")


class Builder:
    """Collects one topology. The function given to `App` gets one, reads topics from it and writes to topics and sinks;
    it must be pure: it is called whenever somebody wants to see the graph."""

    def __init__(self, app: str) -> None:
        self._app = check_name(app, "App", caller())
        self._nodes: list[g.Node] = []
        self._topics: dict[str, Topic[Any, Any]] = {}
        self._sinks: dict[str, Sink[Any, Any]] = {}
        self._reads: dict[str, Stream[Any, Any]] = {}
        self._names: dict[str, Place] = {}  # of states and repartitions: one name space
        self._types: dict[int, tuple[_Later, _Later]] = {}  # node -> its key's and its value's type
        self._repartitions: dict[int, Stream[Any, Any]] = {}  # named key_by -> the stream below its topic

    def read(self, topic: Topic[K, V]) -> Stream[K, V]:
        """The records of a topic, in the order of its partitions."""
        place = caller()
        if not isinstance(topic, Topic):
            raise GraphError(place, f"read wants a Topic, got {type(topic).__name__}.")
        self._declare(topic, place)
        found = self._reads.get(topic.name)
        if found is None:
            node = g.Read(len(self._nodes), place, topic)
            types = (_known(topic.key), _known(without_none(topic.value)))
            found = self._reads[topic.name] = self._stream(node, types, keyed=True)
        return found

    def build(self) -> g.Graph:
        """The finished graph, or a GraphError."""
        return finish(self._app, tuple(self._nodes), self._topics, self._sinks)

    # --- for Stream and Table ---

    def _declare(self, topic: Topic[Any, Any], place: Place) -> None:
        known = self._topics.setdefault(topic.name, topic)
        if known is not topic and (
            (known.key, known.value, known.time, known.on_error, known.partitions, known.source)
            != (topic.key, topic.value, topic.time, topic.on_error, topic.partitions, topic.source)
        ):
            raise GraphError(
                place,
                f"topic {topic.name!r} is declared twice and differently: {known} at {known.place}, {topic} at "
                f"{topic.place}. Declare it once and use that.",
            )

    def _stream(
        self, node: g.Node, types: tuple[_Later, _Later], *, keyed: bool, name: str | None = None
    ) -> Stream[Any, Any]:
        self._add(node, types)
        return Stream(self, node.id, keyed, name)

    def _add(self, node: g.Node, types: tuple[_Later, _Later]) -> None:
        assert node.id == len(self._nodes), (node.id, len(self._nodes))
        self._nodes.append(node)
        self._types[node.id] = types

    def _take_name(self, name: str, what: str, place: Place) -> None:
        check_name(name, f"the name of {what}", place)
        if name in self._names:
            raise GraphError(
                place, f"{what} is named {name!r}, as is what stands at {self._names[name]}. Give it a name of its own."
            )
        self._names[name] = place

    def _serde(self, of: Any, place: Place, what: str, argument: str, later: _Later | None = None) -> Serde:
        if of is None:
            why = later.why() if isinstance(later, _Inferred) else ""
            raise GraphError(
                place,
                f"{what} cannot be told from the program ({why or 'a lambda does not say'}). Say it: {argument}=TYPE).",
            )
        try:
            return serde_of(of)
        except NoSerde as why:
            raise GraphError(place, f"{what}: {why}; or say {argument}=TYPE).") from None


class Stream(Generic[K, V]):
    """Records, each with a key, a value and a time. Immutable: each operator gives a new stream."""

    __slots__ = ("_builder", "_id", "_keyed", "_name")

    def __init__(self, builder: Builder, id: int, keyed: bool, name: str | None = None) -> None:
        self._builder = builder
        self._id = id
        self._keyed = keyed  # whether all records of one key are in one partition here
        self._name = name  # of the topic to repartition through, where key_by was given one

    @property
    def _types(self) -> tuple[_Later, _Later]:
        return self._builder._types[self._id]

    def _next(self, make: Callable[..., g.Node], place: Place, *rest: Any, value: _Later) -> Stream[Any, Any]:
        node = make(len(self._builder._nodes), place, (self._id,), *rest)
        return self._builder._stream(node, (self._types[0], value), keyed=self._keyed)

    # --- operators without state ---

    def map(self, f: Callable[[K, V], R], *, value: type[R] | None = None) -> Stream[K, R]:
        """f(key, value) for each record. `value`: the type of its results, where it cannot be told and is needed."""
        place = _function(f, "map", "key", "value")
        return self._next(g.Map, place, f, True, value=_told(value, result_type, f, self._types))

    def map_values(self, f: Callable[[V], R], *, value: type[R] | None = None) -> Stream[K, R]:
        """f(value) for each record."""
        place = _function(f, "map_values", "value")
        return self._next(g.Map, place, f, False, value=_told(value, result_type, f, self._types[1:]))

    def flat_map(self, f: Callable[[K, V], Iterable[R]], *, value: type[R] | None = None) -> Stream[K, R]:
        """Each element of f(key, value) as a record of its own, in order."""
        place = _function(f, "flat_map", "key", "value")
        return self._next(g.FlatMap, place, f, True, value=_told(value, element_type, f, self._types))

    def filter(self, f: Callable[[V], bool]) -> Stream[K, V]:
        """The records for which f(value) is true."""
        place = _function(f, "filter", "value")
        return self._next(g.Filter, place, f, value=self._types[1])

    @overload
    def branch(self, p: Callable[[V], bool], /) -> tuple[Stream[K, V], Stream[K, V]]: ...
    @overload
    def branch(
        self, p: Callable[[V], bool], q: Callable[[V], bool], /
    ) -> tuple[Stream[K, V], Stream[K, V], Stream[K, V]]: ...
    @overload
    def branch(
        self, p: Callable[[V], bool], q: Callable[[V], bool], r: Callable[[V], bool], /, *more: Callable[[V], bool]
    ) -> tuple[Stream[K, V], ...]: ...
    def branch(self, *predicates: Callable[[V], bool]) -> tuple[Stream[K, V], ...]:
        """One stream per predicate(value) and one for the rest: each record goes to the first that is true."""
        place = caller()
        if not predicates:
            raise GraphError(place, "branch wants at least one predicate.")
        for predicate in predicates:
            _function(predicate, "branch", "value")
        fork = self._next(g.Branch, place, predicates, value=self._types[1])
        arms = [fork._next(g.Arm, place, index, value=self._types[1]) for index in range(len(predicates) + 1)]
        for arm in arms:
            arm._name = self._name
        return tuple(arms)

    def merge(self, *others: Stream[K, V]) -> Stream[K, V]:
        """The records of this stream and the others, in the order in which a task takes them."""
        place = caller()
        for other in others:
            if not isinstance(other, Stream) or other._builder is not self._builder:
                raise GraphError(place, "merge wants streams of the same builder.")
        streams = (self, *others)
        ids = tuple(dict.fromkeys(s._id for s in streams))
        if len(ids) < len(streams):
            raise GraphError(place, "merge of a stream with itself would double each record.")
        types = (_same([s._types[0] for s in streams]), _same([s._types[1] for s in streams]))
        node = g.Merge(len(self._builder._nodes), place, ids)
        return self._builder._stream(node, types, keyed=all(s._keyed for s in streams))

    # --- keys ---

    def key_by(self, f: Callable[[V], K2], *, name: str | None = None, key: type[K2] | None = None) -> Stream[K2, V]:
        """f(value) as the new key. Nothing moves by itself: a stateful operator below reads through an internal topic
        partitioned by the new key, `APP-STATE-repartition`; with `name` all of them share `APP-NAME-repartition`.

        `key`: the type of the new key, where it cannot be told from f."""
        place = _function(f, "key_by", "value")
        builder = self._builder
        if name is not None:
            builder._take_name(name, "key_by", place)
        of = _told(key, result_type, f, self._types[1:])
        node = g.KeyBy(len(builder._nodes), place, (self._id,), f)
        return builder._stream(node, (of, self._types[1]), keyed=False, name=name)

    def _keyed_by_partition(self, name: str, place: Place) -> Stream[K, V]:
        """This stream, through a repartition topic if its key was changed."""
        builder = self._builder
        if self._keyed:
            return self
        shared = builder._repartitions.get(self._id)
        if self._name is not None and shared is not None:
            return shared
        of_key, of_value = self._types
        kept, sent = f"the type of the key that {name!r} is kept by", f"the type of the values that go to {name!r}"
        key = builder._serde(of_key(True), place, kept, "key_by(…, key", of_key)
        value = builder._serde(of_value(True), place, sent, "map(…, value", of_value)
        given = self._name or name
        topic = g.internal_name(builder._app, given, g.InternalKind.REPARTITION)
        node = g.Repartition(len(builder._nodes), place, (self._id,), given, topic, key, value)
        below = builder._stream(node, (_known(key.type), _known(value.type)), keyed=True)
        if self._name is not None:
            builder._repartitions[self._id] = below
        return below

    # --- state ---

    def fold(self, zero: A, f: Callable[[A, V], A], *, name: str, state: type[A] | None = None) -> Table[K, A]:
        """State per key, from `zero` by state = f(state, value). `name` names the state and its changelog; changing
        it is starting anew. `state`: its type, where zero does not tell it (None, [], {})."""
        place = _function(f, "fold", "state", "value")
        of = without_none(state) if state is not None else state_type(zero) or result_type(f, (None, None), call=False)
        return self._fold(g.FoldKind.FOLD, name, f, of, place, zero)

    def count(self, *, name: str) -> Table[K, int]:
        """The number of records per key."""
        return self._fold(g.FoldKind.COUNT, name, None, int, caller(), 0)

    def reduce(self, f: Callable[[V, V], V], *, name: str) -> Table[K, V]:
        """State per key, starting with the first value, then f(state, value)."""
        return self._fold(
            g.FoldKind.REDUCE, name, f, self._types[1](True), _function(f, "reduce", "state", "value"), None
        )

    @overload
    def distinct(self, *, name: str, window: timedelta | None = None) -> Stream[K, V]: ...
    @overload
    def distinct(self, *, key: Callable[[V], K2], name: str, window: timedelta | None = None) -> Stream[K2, V]: ...
    def distinct(
        self, *, key: Callable[[V], Any] | None = None, name: str, window: timedelta | None = None
    ) -> Stream[Any, V]:
        """The first record of each key; what repeats it is left out. With `key`, of each key(value): the records move
        to the partition of that key, as behind `key_by`, and have it from then on.

        Without `window` for ever. With it, a record passes again once its time is at least so much later than that of
        the one that passed; one that is earlier than it is a repeat. `name` names the state and its changelog, in which
        each key has an entry, also past its window."""
        place = caller() if key is None else _function(key, "distinct", "value")
        if window is not None and not (isinstance(window, timedelta) and window >= timedelta(milliseconds=1)):
            raise GraphError(place, f"distinct {name!r}: window={window!r}: a timedelta of a millisecond or more.")
        builder = self._builder
        builder._take_name(name, "distinct", place)
        source = (self if key is None else self.key_by(key))._keyed_by_partition(name, place)
        serde = builder._serde(source._types[0](True), place, f"the type of the key of {name!r}", "key_by(…, key")
        topic = g.internal_name(builder._app, name, g.InternalKind.CHANGELOG)
        node = g.Fold(
            len(builder._nodes), place, (source._id,), g.FoldKind.DISTINCT, name, topic, None, None, serde,
            serde_of(int), None if window is None else window // timedelta(milliseconds=1),
        )  # fmt: skip
        return builder._stream(node, (_known(serde.type), source._types[1]), keyed=True)

    def _fold(
        self, kind: g.FoldKind, name: str, f: Callable[[Any, Any], Any] | None, of: Any, place: Place, zero: Any
    ) -> Table[Any, Any]:
        builder = self._builder
        builder._take_name(name, kind.value, place)
        source = self._keyed_by_partition(name, place)
        key = builder._serde(source._types[0](True), place, f"the type of the key of {name!r}", "key_by(…, key")
        if not hashable(key.type):
            raise GraphError(place, f"{kind} {name!r}: a key of type {key.name} is not hashable; freeze it.")
        serde = builder._serde(of, place, f"the type of the state {name!r}", f"{kind}(…, state")
        topic = g.internal_name(builder._app, name, g.InternalKind.CHANGELOG)
        node = g.Fold(
            len(builder._nodes), place, (source._id,), kind, name, topic, f, _zero(kind, zero, serde, place), key, serde
        )
        builder._add(node, (_known(key.type), _known(serde.type)))
        return Table(builder, node.id)

    # --- ends ---

    @overload
    def write(self, to: Topic[K, V]) -> None: ...
    @overload
    def write(self, to: Sink[V, Once], *, on_error: OnError = "stop") -> None: ...
    @overload
    def write(self, to: Sink[V, Weak], *, accept: Accept, on_error: OnError = "stop") -> None: ...
    def write(
        self, to: Topic[K, V] | Sink[V, Any], *, accept: Accept | None = None, on_error: OnError = "stop"
    ) -> None:
        """To a topic: within the transaction. To a sink: into its outbox within the transaction, from there by the
        sink's delivery under its contract. A sink whose contract lets records repeat or go missing wants
        `accept=AtLeastOnce("why that is fine here")` (or AtMostOnce).

        `on_error`: what happens to a record that the sink will never take: `stop` (default) ends the app with an error
        that names it; `dead-letter` writes it to `APP.dlq`, once, its reason in the headers, and goes on without it.
        Refused here for a sink that cannot keep a superseded owner from writing such a record later."""
        place = caller()
        builder = self._builder
        key, value = self._types
        if isinstance(to, Topic):
            if accept is not None:
                raise GraphError(place, f"write to topic {to.name}: accept= is for sinks; a topic is exactly-once.")
            if on_error != "stop":
                raise GraphError(
                    place,
                    f"write to topic {to.name}: on_error= is for sinks, which may refuse a record; a topic takes what "
                    "its types allow. For records that cannot be read: Topic(…, on_error='dead-letter').",
                )
            builder._declare(to, place)
            _fits(to.key, key(False), f"topic {to.name} has keys of type", "the stream's keys are", place)
            _fits(
                without_none(to.value),
                value(False),
                f"topic {to.name} has values of type",
                "the stream's values are",
                place,
            )
            node = g.Write(len(builder._nodes), place, (self._id,), to, None, "", None, to.key, to.value)
        else:
            self._check_sink(to, accept, place)
            self._check_on_error(to, on_error, place)
            _names_key(to, value(True), place)
            outbox = g.internal_name(builder._app, to.name, g.InternalKind.OUTBOX)
            types = key(True), value(True)
            node = g.Write(len(builder._nodes), place, (self._id,), None, to, outbox, accept, *types, on_error)
            check_deletes(node, builder._nodes)
        builder._add(node, (key, value))

    def _check_sink(self, to: Sink[Any, Any], accept: Accept | None, place: Place) -> None:
        contract = getattr(to, "contract", None)
        if contract is None or not hasattr(to, "encode_value"):
            raise GraphError(place, f"write wants a Topic or a sink, got {type(to).__name__}.")
        check_name(to.name, "the name of a sink", place)
        known = self._builder._sinks.setdefault(to.name, to)
        if known is not to:
            raise GraphError(
                place,
                f"two sinks are named {to.name!r}: they would share one outbox. Give one of them name=…, or "
                "use the same sink object twice.",
            )
        weak = contract.guarantee.rank < Guarantee.ONCE_IN_WINDOW.rank
        if weak and accept is None:
            raise GraphError(
                place,
                f"sink {to.name!r} is {contract.guarantee}: say that you accept it, "
                'accept=AtLeastOnce("why repeats are fine here") or AtMostOnce("why losses are fine here").',
            )
        if accept is not None and not isinstance(accept, AtLeastOnce | AtMostOnce):
            raise GraphError(place, f"accept={accept!r}: an AtLeastOnce or AtMostOnce with its reason.")

    def _check_on_error(self, to: Sink[Any, Any], on_error: str, place: Place) -> None:
        if on_error not in ("stop", "dead-letter"):
            raise GraphError(place, f"sink {to.name!r}: on_error must be 'stop' or 'dead-letter', not {on_error!r}.")
        if on_error == "dead-letter" and (why := cannot_leave_out(to.contract)):
            raise GraphError(
                place,
                f"sink {to.name!r} cannot have on_error='dead-letter': {why}. With on_error='stop' the app stops at "
                "such a record and names it; docs/sinks.md (Records that a sink refuses) lists the sinks that can.",
            )
        for other in self._builder._nodes:
            if isinstance(other, g.Write) and other.sink is to and other.on_error != on_error:
                raise GraphError(
                    place,
                    f"sink {to.name!r} has on_error={other.on_error!r} at {other.place} and {on_error!r} here: it has "
                    "one outbox and one delivery. Say the same in both places.",
                )


class Table(Generic[K, V]):
    """State per key, kept by name, with a changelog."""

    __slots__ = ("_builder", "_id")

    def __init__(self, builder: Builder, id: int) -> None:
        self._builder = builder
        self._id = id

    def changes(self, *, coalesce: bool = False) -> Stream[K, V]:
        """Every update as a record: the key and its new state. With `coalesce` only the last one per key and commit:
        fewer records, the same final values. A deleted state is a None."""
        node = g.Changes(len(self._builder._nodes), caller(), (self._id,), coalesce)
        return self._builder._stream(node, self._builder._types[self._id], keyed=True)

    if not TYPE_CHECKING:  # to the type checker a table has no other attributes

        def __getattr__(self, name: str) -> NoReturn:
            if not name.startswith("_") and hasattr(Stream, name):
                raise GraphError(caller(), f"a table has no {name}: its updates are a stream, .changes().{name}(…).")
            raise AttributeError(f"a table has no {name!r}: .changes() is the stream of its updates")


# --- helpers ---


def _function(f: object, operator: str, *gets: str) -> Place:
    """Refuses what cannot be called with what the operator hands it: at the first record it would be too late."""
    place = caller()
    if not callable(f):
        raise GraphError(place, f"{operator} wants a function, got {type(f).__name__}.")
    try:
        signature = inspect.signature(f)
    except (ValueError, TypeError):  # a builtin that does not say
        return place
    try:
        signature.bind(*gets)
    except TypeError as why:
        other = {"map": " (map_values gets the value alone)", "map_values": " (map gets key and value)"}
        raise GraphError(
            place,
            f"{operator}'s function gets {' and '.join(gets)}{other.get(operator, '')}, and {describe(f)}{signature} "
            f"cannot take that: {why}.",
        ) from None
    return place


# The type of a key or value, asked for when it is needed. True: lambdas may be called with made-up values to find out.
# None: only the user can say.
_Later = Callable[[bool], Any]


def _known(of: Any) -> _Later:
    return lambda _: of


@dataclass(frozen=True, slots=True)
class _Inferred:
    """The type of what a function returns."""

    infer: Callable[..., Any]
    function: Callable[..., Any]
    arguments: tuple[_Later, ...]

    def __call__(self, call: bool) -> Any:
        return self.infer(self.function, [of(call) for of in self.arguments], call=call)

    def why(self) -> str:
        """Why it cannot be told, where the function was called to find out."""
        return why_untold(self.function, [of(True) for of in self.arguments])


def _told(given: Any, infer: Callable[..., Any], f: Callable[..., Any], arguments: tuple[_Later, ...]) -> _Later:
    return _known(without_none(given)) if given is not None else _Inferred(infer, f, arguments)


def _same(types: list[_Later]) -> _Later:
    def of(call: bool) -> Any:
        first, *rest = (later(call) for later in types)
        return first if all(other == first for other in rest) else None

    return of


def _fits(wanted: Any, got: Any, what: str, but: str, place: Place) -> None:
    """Refuses a write whose types are told and differ. Subclasses fit; generics are left to the type checker."""
    if not isinstance(wanted, type) or not isinstance(got, type) or wanted is got:
        return
    try:
        fits = issubclass(got, wanted) or (wanted is float and got is int) or issubclass(wanted, got)
    except TypeError:
        return
    if not fits and not (wanted is dict or (hasattr(wanted, "__total__") and got is dict)):
        raise GraphError(place, f"write: {what} {type_name(wanted)}, {but} {type_name(got)}.")


def _names_key(to: Sink[Any, Any], value: Any, place: Place) -> None:
    """Refuses a sink whose key= are fields that values of this type do not have; dicts are left to the record."""
    wanted = to.key
    if not wanted or not isinstance(value, type):
        return
    if value in SCALARS:
        raise GraphError(
            place,
            f"sink {to.name!r} takes its key ({', '.join(wanted)}) from fields of the value, and the stream's values "
            f"are {type_name(value)}. Make rows of them first: .map(Row), with Row(key, value) a dataclass.",
        )
    try:
        known = [field.encode_name for field in getattr(msgspec.inspect.type_info(value), "fields", ())]
    except (TypeError, NameError, AttributeError):
        return
    for field in wanted if known else ():
        if field not in known and not hasattr(value, field):
            raise GraphError(
                place, f"sink {to.name!r}: key {field!r} is no field of {type_name(value)} (it has {', '.join(known)})."
            )


def _zero(kind: g.FoldKind, zero: Any, serde: Serde, place: Place) -> Callable[[], Any] | None:
    """Gives each key a zero of its own, so that a function that changes its state in place cannot mix keys."""
    if kind is g.FoldKind.REDUCE:
        return None
    if zero is None:
        _no_zero(place)
    try:
        data = serde.encode(zero)
        serde.decode(data)
    except Exception as why:
        raise GraphError(place, f"the zero {zero!r} is no {serde.name}: {why}.") from None
    if immutable(zero):
        return lambda: zero
    return lambda: serde.decode(data)


def _no_zero(place: Place) -> NoReturn:
    raise GraphError(
        place, "fold cannot start from None: a state of None is a deletion. Start from a value, or use reduce."
    )
