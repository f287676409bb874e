"""Chain: the loops that data passes through, from the one that senses to the one that acts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rtloop.errors import ConfigError
from rtloop.group import member
from rtloop.settings import Duration, parse_name
from rtloop.units import parse_duration, show

if TYPE_CHECKING:
    from rtloop.child.process_loop import ProcessLoop
    from rtloop.loop.loop import RTLoop

__all__ = ["Chain", "check_chains"]


class Chain:
    """Loops that data passes through, in order, and its greatest intended age at the end.

    Parameters
    ----------
    loops : iterable of RTLoop or ProcessLoop
        At least two: the first senses, the last acts. A loop may come again: ``[current, velocity, current]``.
    via : iterable of Ring or Latest, optional
        Exchanges that carry the data from each loop to the next, one fewer than the loops. Their ``ends`` are set to
        the names of both loops.
    max_age : duration, optional
        Greatest intended age, from the release at which the first loop senses to the end of the last loop's step. Older
        data is counted, and the run then ends with a warning.
    name : str, optional
        By default the loops' names with arrows between them.

    Raises
    ------
    ConfigError
        If `loops` holds something other than loops, or `via` something other than exchanges.

    Notes
    -----
    A step is assumed to read the newest data when it starts, and to publish by its end. That is true of a ``Latest``,
    and of the newest item of a ``Ring`` if its reader empties it in every cycle.

    Examples
    --------
    >>> from rtloop import Chain, RTLoop
    >>> Chain([RTLoop("1ms", name="sense"), RTLoop("2ms", name="act")], max_age="5ms").name
    'sense -> act'
    """

    def __init__(
        self,
        loops: Iterable[RTLoop | ProcessLoop],
        via: Iterable[Any] | None = None,
        *,
        max_age: Duration | None = None,
        name: str | None = None,
    ) -> None:
        self.loops: tuple[RTLoop | ProcessLoop, ...] = tuple(loops) if isinstance(loops, Iterable) else ()
        if len(self.loops) < 2 or not all(member.is_loop(loop) for loop in self.loops):
            raise ConfigError(f"loops={show(loops)}: a chain consists of at least two loops, and nothing else")
        for one, other in zip(self.loops, self.loops[1:], strict=False):
            if one is other:
                raise ConfigError(f"{one.name} comes twice in a row; remove one of the two")
        self.via = None if via is None else tuple(via)
        if self.via is not None:
            _check_via(self.loops, self.via)
        self.max_age_ns = None if max_age is None else parse_duration(max_age, "max_age", minimum=1)
        self.name = " -> ".join(loop.name for loop in self.loops) if name is None else parse_name(name)

    def __repr__(self) -> str:
        return f"<Chain {self.name!r}>"


def _check_via(loops: Sequence[RTLoop | ProcessLoop], via: Sequence[Any]) -> None:
    from rtloop.data.latest import Latest
    from rtloop.data.ring import Ring

    if len(via) != len(loops) - 1:
        raise ConfigError(f"via has {len(via)} exchanges; a chain of {len(loops)} loops needs {len(loops) - 1}")
    for exchange in via:
        if not isinstance(exchange, (Ring, Latest)):
            raise ConfigError(f"via={show(exchange)}: give the Ring or the Latest that carries the data")


def check_chains(chains: Iterable[Chain], loops: Sequence[RTLoop | ProcessLoop]) -> tuple[Chain, ...]:
    """Check that chains fit a group's loops and each other, and set the ends of their exchanges.

    Raises
    ------
    ConfigError
        If they do not.
    """
    every = tuple(chains) if isinstance(chains, Iterable) else ()
    if (not every and chains != ()) or not all(isinstance(chain, Chain) for chain in every):
        raise ConfigError(f"chains={show(chains)} must be a list of Chain")
    names = [chain.name for chain in every]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{names.count(name)} chains are called {name!r}; give each its own name=")
    known: dict[int, tuple[Any, tuple[str, str], str]] = {}
    for chain in every:
        for loop in chain.loops:
            if not any(loop is other for other in loops):
                raise ConfigError(f"chain {chain.name!r}: {loop.name} is not a loop of the group")
        for exchange, ends in zip(chain.via or (), zip(chain.loops, chain.loops[1:], strict=False), strict=False):
            pair = (ends[0].name, ends[1].name)
            _, former, where = known.setdefault(id(exchange), (exchange, pair, chain.name))
            if former != pair:
                raise ConfigError(
                    f"chain {chain.name!r}: {exchange!r} goes from {pair[0]} to {pair[1]} here, and from {former[0]} "
                    f"to {former[1]} in {where!r}; it can have only one writer and one reader: create one for each pair"
                )
    for exchange, pair, _ in known.values():
        exchange.ends = pair
    return every
