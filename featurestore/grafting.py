"""States of a view made of those of an older definition of it, and of what must be folded anew.

What both definitions keep in the same way is taken from the old state, word by word. In tiles and sessions that is a
primitive of a lane; events, bags and lists are taken whole or not at all. The rest is a plan of its own, the *part*,
with tiles laid out as in the new plan: folded over the events that the new view takes, up to where the old state
stands, it has the words that lack.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featurestore import kernel
from featurestore.engine import words_of
from featurestore.errors import DefinitionError, FormatError
from featurestore.expressions import canonical_text
from featurestore.kernel import layout as at
from featurestore.kernel import primitives as prim
from featurestore.plan import compiled
from featurestore.planned import Lane, Plan
from featurestore.specs import view_of
from featurestore.texts import code_of, read_texts, text_words
from featurestore.times import ENDLESS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.definitions import Feature, View

    Words: TypeAlias = NDArray[np.int64]
    Row: TypeAlias = tuple[int, ...]

#: What STATS has, one behind the other. Tiles only add, and so have the same bits either way.
_BUNDLES = {
    prim.STATS_FLOAT: (prim.N, prim.SUM_FLOAT, prim.MIN_FLOAT, prim.MAX_FLOAT, prim.MOMENTS_FLOAT),
    prim.STATS_INT: (prim.N, prim.SUM_INT, prim.MIN_INT, prim.MAX_INT, prim.MOMENTS_INT),
}
_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Take:
    """What a track of the new plan takes: from columns `old` of track `track` (None: nothing) to its columns `new`.

    `missing` are its ops that the part has; `part` is the number of the part's track with them, None for nothing. Of
    tiles that the old track does not keep as long, the part has all, and what it takes is right for `keep` ms.
    """

    track: int | None
    old: Words
    new: Words
    missing: tuple[int, ...] = ()
    part: int | None = None
    keep: int = ENDLESS


@dataclass(frozen=True)
class Graft:
    """How states of `new` come of those of `old` and of `part`, which is None where nothing lacks."""

    old: Plan
    new: Plan
    part: Plan | None
    takes: tuple[_Take, ...]

    @property
    def kept(self) -> list[Feature]:
        """The stored features that need no history."""
        kept: list[Feature] = []
        for row in self.new.groups:
            take = self.takes[row[at.TRACK]]
            for out in self.new.outs[row[at.FIRST_OUT] : row[at.END_OUT]]:
                taken = take.track is not None and out[at.OUT_WORD] in take.new
                if take.part is None or (taken and row[at.LENGTH] + row[at.DELAY] <= take.keep):
                    kept += [self.new.outputs[j] for j in out[at.OUTPUT :] if j >= 0]
        return kept

    @property
    def anew(self) -> list[Feature]:
        """Those that do, in the order of the view."""
        kept = {feature.name for feature in self.kept}
        return [feature for feature in self.new.view.stored if feature.name not in kept]

    def state(self, old: bytes | None, part: bytes | None) -> bytes:
        """The new state of an entity on a partition; both are encoded, None where there is no state."""
        before, anew = _Read(self.old, old), _Read(self.part, part)
        newest, last = max(before.head[0], anew.head[0]), max(before.head[1], anew.head[1])
        runs = []
        for row, take in zip(self.new.tracks, self.takes, strict=True):
            kept = before.run(take.track)
            lacking = anew.run(take.part)
            runs.append(_live(row, _joined(row, take, kept, lacking), newest))
        head = [at.FORMAT | len(runs) << 8, newest, last, *map(len, runs)]
        texts = _texts(self.new, runs, before, anew) if self.new.has_texts else _NOTHING
        words = np.concatenate([np.array(head, np.int64), *(run.reshape(-1) for run in runs), texts])
        return bytes(kernel.squeezed(words))


def grafting(old: Plan, new: Plan) -> Graft:
    """Find what the new plan can take from states of the old one."""
    takes = [_take(old, new, row, number) for number, row in enumerate(new.tracks)]
    lacking = {number for number, take in enumerate(takes) if take.part is not None}
    told = {new.tracks[number][at.PARENT] - 1 for number in lacking if new.tracks[number][at.PARENT]}
    numbers = sorted(lacking | told)
    takes = [
        dataclasses.replace(take, part=numbers.index(number)) if number in lacking else take
        for number, take in enumerate(takes)
    ]
    return Graft(old, new, _part(new, takes, numbers) if numbers else None, tuple(takes))


def graft_of(spec: Mapping[str, Any], view: View) -> Graft:
    """What a view takes of the definition that `spec` says. Raises DefinitionError, with the reason, for nothing."""
    old = view_of(spec, entity=view.entity, source=view.source)
    graft = grafting(compiled(old), compiled(view))
    if not graft.kept:
        raise DefinitionError(f"{old.key} kept nothing that its states now need")
    return graft


def _lane(plan: Plan, number: int) -> Hashable:
    """What makes a lane the same in two plans."""
    lane = plan.lanes[number]
    return lane.column, canonical_text(lane.where), lane.is_float, lane.other, lane.coding


def _track(plan: Plan, row: Row) -> Hashable:
    """What makes a track the same in two plans, beside how much it keeps."""
    if not row[at.BAG]:
        return row[at.KIND], row[at.HOP]
    bag = plan.bags[row[at.BAG] - 1]
    shape = _lane(plan, bag.lane), bag.kind, bag.policy, bag.bound
    return row[at.KIND], row[at.HOP], row[at.PARENT] > 0, row[at.SPAN], shape


def _take(old: Plan, new: Plan, row: Row, number: int) -> _Take:
    """What a track of the new plan finds in the old one; its `part` is any number where it lacks something."""
    ops = tuple(range(row[at.FIRST_OP], row[at.END_OP]))
    everything = _Take(None, _NOTHING, _NOTHING, ops, 0)
    like = [i for i, other in enumerate(old.tracks) if _track(old, other) == _track(new, row)]
    if not like:
        return everything
    (track,) = like
    shorter = old.tracks[track][at.KEEP] < row[at.KEEP] or old.tracks[track][at.LIMIT] < row[at.LIMIT]
    if row[at.KIND] in (at.TILES, at.SESSIONS):
        return _take_ops(old, new, track, ops, all_anew=shorter)
    if shorter:
        return everything
    if row[at.BAG]:
        return _Take(track, np.arange(row[at.STRIDE]), np.arange(row[at.STRIDE]))
    places = {_lane(old, lane): place for place, lane in enumerate(old.track_lanes[track])}
    wanted = [_lane(new, lane) for lane in new.track_lanes[number]]
    if not places.keys() >= set(wanted):
        return everything
    return _Take(track, np.array([places[lane] for lane in wanted]), np.arange(len(wanted)))


def _take_ops(old: Plan, new: Plan, track: int, ops: Sequence[int], *, all_anew: bool) -> _Take:
    """The primitives that an old track of tiles or sessions has."""
    row, found = old.tracks[track], dict[tuple[Hashable, int, float], int]()
    bundles = _BUNDLES if row[at.KIND] == at.TILES else {}
    for o in range(row[at.FIRST_OP], row[at.END_OP]):
        found |= dict(_units(old, o, bundles))
    frame = np.arange(2 if row[at.KIND] == at.SESSIONS else 1)
    columns, missing = [(frame, frame)], []
    for o in ops:
        units = list(_units(new, o, bundles))
        there = all(unit in found for unit, _ in units)
        if all_anew or not there:
            missing.append(o)
        for unit, word in units if there else ():
            size = np.arange(prim.WORDS[unit[1]])
            columns.append((found[unit] + size, word + size))
    old_columns, new_columns = (np.concatenate(each) for each in zip(*columns, strict=True))
    return _Take(track, old_columns, new_columns, tuple(missing), 0 if missing else None, row[at.KEEP])


def _units(
    plan: Plan, o: int, bundles: Mapping[int, Sequence[int]]
) -> Iterator[tuple[tuple[Hashable, int, float], int]]:
    """The primitives that an op keeps, each with its first word in a tile."""
    op, lane = plan.ops[o], _lane(plan, plan.ops[o][at.LANE])
    parts = bundles.get(op[at.CODE], (op[at.CODE],))
    words = accumulate((prim.WORDS[part] for part in parts), initial=op[at.WORD])
    for part, word in zip(parts, words, strict=False):
        yield (lane, part, plan.op_parameters[o]), word


def _part(new: Plan, takes: Sequence[_Take], numbers: Sequence[int]) -> Plan:
    """The plan of what lacks: of the tracks `numbers` the missing ops, with tiles as in the new plan.

    It takes every event: the late ones are those of the new view, and must have been taken out.
    """
    tracks: list[Row] = []
    ops: list[tuple[Row, float]] = []
    for number in numbers:
        row, first = list(new.tracks[number]), len(ops)
        ops += _part_ops(new, takes[number].missing)
        row[at.FIRST_OP], row[at.END_OP] = first, len(ops)
        if row[at.PARENT]:
            row[at.PARENT] = 1 + numbers.index(row[at.PARENT] - 1)
        tracks.append(tuple(row))
    lanes = {op[at.LANE] + more for op, _ in ops for more in range(1 + (op[at.CODE] == prim.PAIR))}
    lanes |= {lane for number in numbers for lane in new.track_lanes[number]}
    bags = [new.bags[row[at.BAG] - 1] for row in tracks if row[at.BAG]]
    lanes |= {lane for bag in bags for lane in range(bag.lane, bag.lane + bag.words)}
    unused = Lane("", None, is_float=False)
    return dataclasses.replace(
        new,
        lanes=tuple(lane if number in lanes else unused for number, lane in enumerate(new.lanes)),
        outputs=(),
        tracks=tuple(tracks),
        track_lanes=tuple(new.track_lanes[number] for number in numbers),
        track_texts=tuple(new.track_texts[number] for number in numbers),
        bags=new.bags if bags else (),
        ops=tuple(op for op, _ in ops),
        op_parameters=tuple(parameter for _, parameter in ops),
        groups=(),
        outs=(),
        out_parameters=(),
        cache_words=0,
    ).patient


def _part_ops(new: Plan, missing: Sequence[int]) -> Iterator[tuple[Row, float]]:
    """Missing ops, and the counts of their lanes, which all others ask."""
    counted = {new.ops[o][at.LANE] for o in missing if new.ops[o][at.WORD] == new.ops[o][at.N_WORD]}
    for place, o in enumerate(missing):
        op = new.ops[o]
        yield op, new.op_parameters[o]
        last = place + 1 == len(missing) or new.ops[missing[place + 1]][at.LANE] != op[at.LANE]
        if last and op[at.LANE] not in counted:
            row = list(op)
            row[at.CODE], row[at.WORD], row[at.SIZE] = prim.N, op[at.N_WORD], prim.WORDS[prim.N]
            yield tuple(row), 0.0


class _Read:
    """An encoded state, taken apart; there is nothing in it when there is no plan or no state."""

    head: tuple[int, int]
    texts: list[str]
    _runs: list[Words]

    def __init__(self, plan: Plan | None, state: bytes | None) -> None:
        self.head, self.texts, self._runs = (at.INT_MIN, at.INT_MIN), [], []
        if plan is None or state is None:
            return
        words, tracks = words_of(state), len(plan.tracks)
        if len(words) < at.HEAD + tracks or words[0] != at.FORMAT | tracks << 8:
            raise _unreadable(plan)
        self.head = (int(words[1]), int(words[2]))
        end = at.HEAD + tracks
        for row, count in zip(plan.tracks, words[at.HEAD : end].tolist(), strict=True):
            begin, end = end, end + count * row[at.STRIDE]
            if count < 0 or end > len(words):
                raise _unreadable(plan)
            self._runs.append(words[begin:end].reshape(-1, row[at.STRIDE]))
        self.texts = read_texts(words[end:]) or []

    def run(self, track: int | None) -> Words | None:
        """A track's tiles or records, a row each; None when there is no state of it."""
        return None if track is None or not self._runs else self._runs[track]


def _unreadable(plan: Plan) -> FormatError:
    return FormatError(
        f"a stored state of {plan.view.key} was written by another version or is damaged, so that nothing can "
        "be taken from it: with the whole log, all is folded anew"
    )


def _joined(row: Row, take: _Take, kept: Words | None, lacking: Words | None) -> Words:
    """A track's new run of what is kept and of what was folded anew."""
    if kept is None:
        return np.zeros((0, row[at.STRIDE]), np.int64) if lacking is None else lacking
    if row[at.KIND] in (at.EVENTS, at.LATEST):
        return _records(row, take, kept)
    if lacking is None:
        lacking = np.zeros((0, row[at.STRIDE]), np.int64)
    count, ours, theirs = len(kept), np.arange(len(kept)), np.arange(len(lacking))
    if row[at.KIND] == at.SESSIONS:
        # The old state knows all of a session, history may lack its beginning: but both know its last event.
        theirs = _found(kept[:, 1], lacking[:, 1])
        lacking, theirs = lacking[theirs >= 0], theirs[theirs >= 0]
    elif len(lacking) and not np.array_equal(kept[:, 0], lacking[:, 0]):
        indices = np.union1d(kept[:, 0], lacking[:, 0])
        count, ours, theirs = (
            len(indices),
            np.searchsorted(indices, kept[:, 0]),
            np.searchsorted(indices, lacking[:, 0]),
        )
    out = np.zeros((count, row[at.STRIDE]), np.int64)
    out[theirs] = lacking
    out[ours[:, None], take.new] = kept[:, take.old]
    return out


def _found(ordered: Words, wanted: Words) -> Words:
    """Where each wanted number is among the ordered ones; -1 for nowhere."""
    places = np.searchsorted(ordered, wanted)
    there = places < len(ordered)
    there[there] = ordered[places[there]] == wanted[there]
    return np.where(there, places, -1)


def _records(row: Row, take: _Take, kept: Words) -> Words:
    """Records of events, with the values of the new plan's lanes only."""
    out = np.zeros((len(kept), row[at.STRIDE]), np.int64)
    out[:, 0] = kept[:, 0]
    for new, old in zip(take.new.tolist(), take.old.tolist(), strict=True):
        out[:, 1] |= (kept[:, 1] >> old & 1) << new
        out[:, 2 + new] = kept[:, 2 + old]
    return out


def _live(row: Row, run: Words, newest: int) -> Words:
    """What the new plan still keeps of a run, as `kernel.blobs` has it."""
    kind, hop = row[at.KIND], row[at.HOP]
    if kind == at.LATEST:
        return run[max(len(run) - row[at.LIMIT], 0) :]
    if kind == at.SESSIONS or row[at.PARENT]:
        return run
    oldest = (newest - row[at.KEEP] + 1) // hop
    return run[np.searchsorted(run[:, 0], oldest * hop if kind in (at.EVENTS, at.LISTS) else oldest) :]


def _texts(plan: Plan, runs: Sequence[Words], *states: _Read) -> Words:
    """The words of the texts that runs name, each once, in the order in which they do."""
    named = [run[:, list(places)].reshape(-1) for run, places in zip(runs, plan.track_texts, strict=True)]
    known = {code_of(text): text for state in states for text in state.texts}
    codes = dict.fromkeys(np.concatenate(named).tolist())
    return text_words(known[code] for code in codes if code in known)
