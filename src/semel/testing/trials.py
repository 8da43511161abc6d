"""The trials of the contract kit: each takes a stand and returns when the sink shows what its contract's fields say.

What a trial demands follows from the fields: who claims to remember the position must return it; who claims to
recognise a repeat is sent one; who claims a fence meets a zombie. Invariant: a trial whose fault did not happen (no
answer was lost, no zombie was refused) proves nothing and is red.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

from msgspec import structs

from semel.contract import (
    Atomicity,
    Attempt,
    Claim,
    Contract,
    Fence,
    Identity,
    PositionIn,
    Row,
    Settlement,
)
from semel.guarantees.words import disagreement, once
from semel.ports import Done, Fenced, NotDone, Outcome, SinkConnection, Step, Unknown
from semel.sinks.sink import Diverged, RowRefused, SinkError
from semel.testing.deciding import Deciding
from semel.testing.subject import LOG, RUN, Counting, Crashed, NotTried, Stand

Trial = Callable[[Stand], None]


def _cut(contract: Contract) -> bool:
    """Whether a batch is recognised by its ends: then these are written down, and no other batch is ever made of it."""
    return contract.identity in (Identity.CUT, Identity.TOKEN)


def agreement(stand: Stand) -> None:
    """The contract's word, its fields and the type that `write` sees say one thing; `check` would print its label."""
    told = disagreement(stand.contract, stand.sink.kind.__name__)
    stand.require(not told, told)


def plain(stand: Stand) -> None:
    """Without any fault: rows arrive, in small batches and in one as large as the sink's quick path wants."""
    connection = stand.connection()
    claim = stand.claim(connection)
    small, large = stand.entries(10), stand.entries(stand.subject.large, 10)
    stand.written(connection, claim, small)
    stand.holds("after ten records", small)
    stand.written(connection, claim, large)
    stand.holds(f"after {len(large)} more", small, large)
    told = connection.rows()
    stand.require(len(told) == len(stand.read()), "rows() shows another number of rows than the reader finds")


def position(stand: Stand) -> None:
    """Who claims to remember the position returns it, with its run, at every claim; a gap is not written; and of
    another log it says so and changes nothing (S16)."""
    c = stand.contract
    if c.position is not PositionIn.SINK:
        raise NotTried(f"the position is in {c.position}")
    first, second = stand.connection(), stand.connection()
    claim = stand.claim(first)
    stand.require((claim.position, claim.run) == (0, ""), f"the first claim is at {claim.position} {claim.run!r}")
    batch = stand.entries(10)
    stand.written(first, claim, batch)
    again = stand.claim(second)
    stand.require((again.position, again.run) == (10, RUN), f"the position after 10 records is {again.position}")
    stand.require(again.epoch > claim.epoch, f"the epoch did not grow: {claim.epoch}, then {again.epoch}")
    for other in (replace(LOG, topic_id="another"), replace(LOG, partitions=2)):
        try:
            stand.claim(second, log=other)
        except Diverged:
            continue
        stand.require(False, "a claim on a re-created log is given: its first records would be skipped")
    after = stand.entries(5, 10)
    stand.written(second, again, after)
    stand.require(stand.claim(first).incarnation == claim.incarnation, "the incarnation changed without a reason")
    stand.holds("after claims on other logs", batch, after)


def replay(stand: Stand) -> None:
    """A batch written again changes nothing: by its own writer, and by the next owner who does not know of it."""
    if not once(stand.contract):
        raise NotTried("repeats are accepted")
    first, second = stand.connection(), stand.connection()
    claim = stand.claim(first)
    for batch, earlier in ((stand.entries(10), []), (stand.entries(stand.subject.large, 10), stand.entries(10))):
        stand.written(first, claim, batch)
        _repeated(stand, first, claim, batch)
        stand.holds("after the same batch again", earlier, batch)
    heir = stand.claim(second, position=10)
    _repeated(stand, second, replace(heir, position=10), batch)
    stand.holds("after the next owner wrote it again", earlier, batch)
    later = stand.entries(5, batch[-1].offset + 1)
    stand.written(second, replace(heir, position=later[0].offset), later)
    stand.holds("after going on", earlier, batch, later)


def repeats(stand: Stand) -> None:
    """Who stores repeats and removes them later: they are stored, or nothing was tried; and behind the view each
    record is there once, also while another owner appends."""
    c = stand.contract
    if not c.through:
        raise NotTried("no view and no step stands behind this sink")
    first, second = stand.connection(), stand.connection()
    claim = stand.claim(first)
    batch = stand.entries(stand.subject.large)
    stand.written(first, claim, batch)
    stand.written(first, claim, batch)
    heir = stand.claim(second, position=5)
    stand.written(second, replace(heir, position=5), batch[5:])
    stand.holds(f"through {c.through}, after three writes", batch)
    more = stored(stand) - len(batch)
    stand.require(more >= len(batch), f"only {more} repeats were stored: {c.through} had nothing to remove")


def stored(stand: Stand) -> int:
    """Rows before the view."""
    if stand.subject.stored is None:
        stand.require(
            False, f"{stand.contract.through} is to remove repeats, and stored= does not say that any were there"
        )
        return 0
    return stand.subject.stored(stand.subject.address, stand.suffix)


def _repeated(stand: Stand, connection: SinkConnection, claim: Claim, batch: Sequence[Row]) -> None:
    """What recognises a repeat decides whether it is refused or is done without effect."""
    outcome = stand.write(connection, claim, batch)
    fenced = stand.contract.identity is Identity.OFFSET
    wanted = Fenced if fenced else Done
    stand.require(
        isinstance(outcome, wanted),
        f"a repeat recognised by {stand.contract.identity} is {wanted.__name__}, this one was {outcome}",
    )


def recut(stand: Stand) -> None:
    """The same records in batches with other ends. (Cuts that are written down cannot differ: `crashes` has them.)"""
    c = stand.contract
    if not once(c) or _cut(c):
        raise NotTried(f"a repeat is recognised by {c.identity}")
    connection = stand.connection()
    claim = stand.claim(connection)
    all_of_it = stand.entries(30)
    stand.written(connection, claim, all_of_it[:10])
    for start, end in ((5, 15), (0, 10), (3, 7), (0, 30)):
        outcome = stand.write(connection, replace(claim, position=start), all_of_it[start:end])
        if c.identity is Identity.OFFSET:
            stand.require(isinstance(outcome, Fenced), f"[{start}, {end}) after [0, 10) was {outcome}")
            stand.holds(f"after [{start}, {end})", all_of_it[:10])
        else:
            stand.require(outcome == Done(), f"[{start}, {end}) after [0, 10) was {outcome}")
            stand.holds(f"after [{start}, {end})", all_of_it[: max(end, 15)])
    claim = stand.claim(connection, position=10)
    stand.require(claim.position == 10 or c.identity is not Identity.OFFSET, f"the position is {claim.position}")
    for start, end in ((10, 13), (13, 30)):
        stand.written(connection, replace(claim, position=start), all_of_it[start:end])
    stand.holds("after the rest in two batches", all_of_it)


def lost_before(stand: Stand) -> None:
    """The request to commit never arrives (S8). What is said of it is true, and it is mended as the contract says."""
    _lost(stand, after_effect=False)


def lost_after(stand: Stand) -> None:
    """The commit has its effect, its answer does not come back (S8)."""
    _lost(stand, after_effect=True)


def _lost(stand: Stand, *, after_effect: bool) -> None:
    if stand.subject.loses is None:
        raise NotTried("the subject has no way to lose an answer (loses=)")
    with stand.subject.loses() as loses:
        connection = stand.connection(address=loses.address())
        batches = [stand.entries(10), stand.entries(stand.subject.large, 10), stand.entries(10, 1_000)]
        claim = stand.claim(connection)
        stand.written(connection, claim, batches[0])
        loses.lose(connection, after_effect=after_effect)
        outcome = stand.write(connection, claim, batches[1])
        stand.require(loses.lost() == 1, f"the commit's answer was not lost, so nothing is known: {outcome}")
        other = stand.connection()
        settled = stand.claim(other, position=10)
        there = stand.read() == stand.expected(*batches[:2])
        stand.require(there or stand.read() == stand.expected(batches[0]), "a part of the batch is there")
        stand.require(
            not (outcome == Done() and not there), f"unknown was taken for done: {outcome}, and nothing is there"
        )
        stand.require(
            not (isinstance(outcome, NotDone | Fenced) and there), f"unknown was taken for not done: {outcome}"
        )
        stand.require(there or not after_effect, f"the effect is gone though the request arrived: {outcome}")
        _mended(stand, other, settled, outcome, batches[1], there)
        stand.written(other, replace(stand.claim(other, position=1_000), position=1_000), batches[2])
        stand.holds("after going on", *batches)


def _mended(
    stand: Stand, connection: SinkConnection, claim: Claim, outcome: Outcome, batch: Sequence[Row], there: bool
) -> None:
    """As `Contract.resolution` says: the next owner reads the position, or sends the same again."""
    c = stand.contract
    start, end = batch[0].offset, batch[-1].offset + 1
    if c.remembers_position:
        stand.require(claim.position == (end if there else start), f"position {claim.position}, rows there: {there}")
    if c.position is PositionIn.SINK:
        stand.require(there or claim.position <= start, f"position {claim.position}, and the rows are not there")
    if outcome == Done() or claim.position >= end:
        pass
    elif once(c) or not there:
        stand.written(connection, replace(claim, position=start), batch)
    if c.position is PositionIn.SINK:  # the batch after this one begins at 1,000
        now = stand.claim(connection)
        if now.position < 1_000:
            outcome = connection.write(now, now.position, 1_000, RUN, [])
            stand.require(outcome == Done(), f"a batch without rows, which moves the position on, is {outcome}")


def torn(stand: Stand) -> None:
    """An owner that ends at each step of a batch (S10): rows are there together as `atomicity` says, never ahead of
    them a position; and the next owner, who waits for nobody, makes it whole."""
    c = stand.contract
    steps = Counting()
    connection = stand.connection(steps)
    stand.written(connection, stand.claim(connection), stand.entries(10))
    connection.close()
    done, seen = [stand.entries(10)], set(steps.hits)
    stand.require(bool(seen), "it reaches no named step: nobody can be killed at one, so nothing is known")
    for count, step in enumerate(step for step in Step if step in seen):
        start = 10 + count * stand.subject.large
        batch = stand.entries(stand.subject.large, start)
        ending = stand.connection(Counting(crash_at=step))
        claim = stand.claim(ending, position=start)
        stand.require(claim.position == start, f"position {claim.position} instead of {start}")
        try:
            outcome = stand.write(ending, claim, batch)
        except Crashed:
            ending.close()
        else:
            stand.require(False, f"{step} was reached in the first batch and not in this one: {outcome}")
        heir = stand.connection()
        claim = stand.claim(heir, position=start)
        if c.settlement is Settlement.DECIDED:  # dropping the sink removes it, too, so it is looked at here
            doubt = list(cast(Deciding, heir).phases.in_doubt())
            stand.require(not doubt, f"after an end at {step} and a claim there is still in doubt: {', '.join(doubt)}")
        found, before, after = stand.read(), stand.expected(*done), stand.expected(*done, batch)
        if c.atomicity is Atomicity.BATCH:
            stand.require(found in (before, after), f"a part of a batch is visible after an end at {step}")
        if c.remembers_position:
            at = start if found == before else batch[-1].offset + 1
            stand.require(claim.position == at, f"after an end at {step} the position is {claim.position}, not {at}")
        if c.position is PositionIn.SINK and claim.position > start:
            stand.require(found == after, f"after an end at {step} the position is ahead of the rows")
        if claim.position == start and (once(c) or found == before):
            stand.written(heir, claim, batch)
        done.append(batch)
        stand.holds(f"after an end at {step}", *done)
        heir.close()


def zombie(stand: Stand) -> None:
    """A superseded owner writes after its successor's commit (S1): what was, what is, and what comes. It is refused or
    has no effect, and that is counted."""
    c = stand.contract
    if not once(c):
        raise NotTried("nothing stops a superseded owner; repeats are accepted")
    steps = Counting()
    old, new = stand.connection(steps), stand.connection()
    stale = stand.claim(old)
    first, second = stand.entries(10), stand.entries(10, 10)
    stand.written(old, stale, first)
    claim = stand.claim(new, position=10)
    stand.written(new, claim, second)
    refused = 0
    # Its next batch, a part of it (where cuts are not written down and could differ), and what it wrote before.
    batches = (second, first) if _cut(c) else (second, second[:5], first[5:], first)
    for batch in batches:
        before = steps.hits[Step.SINK_STALE]
        outcome = stand.write(old, replace(stale, position=batch[0].offset), batch)
        stand.require(not isinstance(outcome, Unknown), f"a zombie's batch is neither done nor refused: {outcome}")
        refused += _without_effect(stand, outcome, steps.hits[Step.SINK_STALE] > before)
        stand.holds("after a zombie's batch", first, second)
    left = len(batches) - refused
    stand.require(not left, f"{left} of a zombie's {len(batches)} batches were neither refused nor counted as stale")
    # What its successor has not come to yet. By version it may be written early: it is what will be written.
    later = stand.entries(10, 20)
    outcome = stand.write(old, replace(stale, position=20), later)
    if c.fence in (Fence.EPOCH_IN_TRANSACTION, Fence.TRANSACTIONAL_ID):
        stand.require(isinstance(outcome, Fenced), f"a superseded owner's batch at the right position was {outcome}")
        stand.holds("after a zombie's batch at the right position", first, second)
    stand.written(new, replace(claim, position=20), later)
    stand.holds("after the successor went on", first, second, later)


def _without_effect(stand: Stand, outcome: Outcome, stale: bool) -> bool:
    """Whether a superseded owner was told, or counted what it wrote as stale."""
    match stand.contract.fence:
        case Fence.EPOCH_IN_TRANSACTION | Fence.TRANSACTIONAL_ID:
            return isinstance(outcome, Fenced)
        case Fence.OLDER_VERSION_LOSES:
            return isinstance(outcome, Fenced) or stale
        case _:
            return True  # the reader has seen that nothing changed


def reborn(stand: Stand) -> None:
    """A new incarnation of the outbox counts its offsets from 0 again (S12, S16): its records have their effect, and
    the higher offsets of the former one, sent by a late owner, have none any more."""
    c = stand.contract
    if not once(c) or c.identity in (Identity.OFFSET, Identity.EVENT_ID) or c.settlement is Settlement.DECIDED:
        raise NotTried(f"a repeat is recognised by {c.identity}: a new incarnation begins by a new position")
    connection = stand.connection()
    claim = stand.claim(connection)
    former = stand.entries(20)
    stand.written(connection, claim, former)
    claim = stand.claim(connection, position=0)
    newer = replace(claim, incarnation=claim.incarnation + 1, position=0)
    again = [stand.row(at, f"k{at % 7}", 1_000 + at) for at in range(10)]
    stand.written(connection, newer, again)
    stand.holds("after a new incarnation began at offset 0", former, again)
    stand.write(connection, replace(claim, position=0), former)
    stand.holds("after a late batch of the former incarnation", former, again)


def undone(stand: Stand) -> None:
    """What was prepared is committed or taken back, and asked again the sink tells which: it may answer a second commit
    as it answers one after a rollback (S4). What was taken back and then decided is a matter for a person."""
    if stand.contract.settlement is not Settlement.DECIDED:
        raise NotTried("it prepares nothing")
    connection = stand.connection()
    phases = cast(Deciding, connection).phases
    claim = stand.claim(connection)
    batch = stand.entries(10)
    for number, takes_back in ((1, True), (2, False)):
        attempt = Attempt(0, number, 10)
        outcome = phases.prepare_cut(claim, attempt, RUN, batch)
        stand.require(outcome == Done(), f"a cut that nothing hinders is not prepared: {outcome}")
        stand.holds("after a cut was prepared and not decided")
        stand.require(len(phases.in_doubt()) == 1, f"in doubt is one attempt, it names {list(phases.in_doubt())}")
        if takes_back:
            phases.abandon(claim, attempt)
            stand.require(not phases.in_doubt(), f"it was taken back, and is in doubt: {list(phases.in_doubt())}")
            try:
                outcome = phases.commit_cut(claim, attempt)
            except Diverged:
                pass
            else:
                stand.require(False, f"a commit of what was taken back is {outcome}")
            stand.holds("after a commit of what was taken back")
            continue
        for _ in range(2):
            outcome = phases.commit_cut(claim, attempt)
            stand.require(outcome == Done(), f"a commit, or the same one again, is {outcome}")
            stand.holds("after the commit", batch)
        phases.abandon(claim, attempt)
        stand.holds("after what was committed was to be taken back", batch)


def deletes(stand: Stand) -> None:
    """None deletes the row of its key, in order with its writes (S9): in one batch, over batches, for a key that was
    never written; and what is older does not bring it back."""
    if not stand.keyed:
        try:
            stand.sink.encode_deleted("a")
        except SinkError:
            return
        stand.require(False, "without key= a delete has no row to go to, and is not refused")
    steps = Counting()
    old, new = stand.connection(steps), stand.connection()
    stale = stand.claim(old)
    first = [stand.row(0, "a", 0), stand.row(1, "b", 1), stand.delete(2, "a"), stand.delete(3, "never")]
    first += [stand.row(4, "c", 4), stand.delete(5, "d"), stand.row(6, "d", 6)]
    stand.written(old, stale, first)
    stand.holds("after deletes in a batch", first)
    claim = stand.claim(new, position=7)
    second = [stand.delete(7, "b"), stand.delete(8, "c"), stand.row(9, "a", 9)]
    stand.written(new, claim, second)
    stand.holds("after deletes in a later batch", first, second)
    if not once(stand.contract):
        return
    for batch in (first, second):
        outcome = stand.write(old, replace(stale, position=batch[0].offset), batch)
        stand.require(not isinstance(outcome, Unknown | NotDone), f"a zombie's batch of deleted rows is {outcome}")
        stand.holds("after an older write of deleted rows", first, second)
    third = [stand.row(10, "b", 10), stand.delete(11, "a")]
    stand.written(new, replace(claim, position=10), third)
    stand.holds("after a deleted row was written again", first, second, third)


def poison(stand: Stand) -> None:
    """A record that the sink never takes (S6, S11): named by its offset, in a small batch and in a large one; of its
    batch nothing is there that `atomicity` forbids, nothing is taken for done, and without it the rest arrives."""
    if not stand.subject.poison:
        raise NotTried("there is no value that this sink refuses (poison=)")
    c = stand.contract
    connection = stand.connection()
    done = [stand.entries(10)]
    claim = stand.claim(connection)
    stand.written(connection, claim, done[0])
    for value in stand.subject.poison:
        for count in (4, stand.subject.large):
            start = done[-1][-1].offset + 1
            batch = stand.entries(count, start)
            # With a key of its own: a sink that reduces a batch by key need not see what was replaced in it.
            batch[count // 2] = stand.row(batch[count // 2].offset, "p", start)
            bad = structs.replace(batch[count // 2], value=value)
            poisoned = [bad if row.offset == bad.offset else row for row in batch]
            try:
                outcome = stand.write(connection, replace(claim, position=start), poisoned)
            except RowRefused as why:
                stand.require(why.offset == bad.offset, f"refused is {why.offset}, poison was at {bad.offset}")
            else:
                stand.require(False, f"{value!r} at {bad.offset} was not refused: {outcome}")
            if c.atomicity is Atomicity.BATCH:
                stand.holds(f"after a batch with {value!r}", *done)
            if c.position is PositionIn.SINK:
                now = stand.claim(connection)
                stand.require(now.position == start, f"the position moved to {now.position} over a poison record")
                claim = now
            stand.written(connection, replace(claim, position=start), batch)
            done.append(batch)
            if once(c):
                stand.holds("after the same batch without the poison", *done)


def forgets(stand: Stand) -> None:
    """Whether what it recognises a repeat by lasts as long as it says."""
    c = stand.contract
    if stand.subject.forget is None or not once(c):
        raise NotTried("nothing was named that makes this sink forget (forget=)")
    connection = stand.connection()
    claim = stand.claim(connection)
    batch = stand.entries(10)
    stand.written(connection, claim, batch)
    stand.subject.forget(stand.subject.address, stand.suffix)
    stand.write(connection, claim, batch)
    if c.window is None:
        stand.holds("after a time, without a window in its contract", batch)


def durable(stand: Stand) -> None:
    """What was acknowledged is there after the system's own crash, and the position with it (S13)."""
    if stand.subject.crash is None:
        raise NotTried("nothing was named that crashes the system (crash=)")
    connection = stand.connection()
    done = [stand.entries(10)]
    stand.written(connection, stand.claim(connection), done[0])
    stand.subject.crash()
    stand.holds("after the system's crash", *done)
    claim = stand.claim(stand.connection(), position=10)
    stand.require(claim.position <= 10, f"the position is {claim.position}, 10 records were written")
    if stand.contract.remembers_position:
        stand.require(claim.position == 10, f"the position went back to {claim.position}")
