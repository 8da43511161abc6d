"""The named steps of the protocols: where a process can be killed or stopped, and what is counted.

SEMEL_KILL and SEMEL_STOP name them.

`Steps` is told of each. Invariant: a name is never given another meaning; `semel verify --list-steps`
prints those of an app's path.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Step(StrEnum):
    """The named steps of every protocol, where a process can be killed or stopped on purpose.

    `SEMEL_KILL=step:n` kills the process (SIGKILL) when it reaches `step` for the n-th time,
    `SEMEL_STOP=step:n` stops it (SIGSTOP); in production reaching a step does nothing.
    """

    TASKS_BEFORE = "tasks.before"  # partitions were assigned, nothing was asked of where they stand
    # The worker, in the order of one transaction.
    OUTPUT_BEFORE = "output.before"  # before the first output of a transaction is handed to the log
    OUTPUT_AFTER = "output.after"  # all outputs handed over, offsets not yet sent
    OFFSETS_BEFORE = "offsets.before"
    OFFSETS_AFTER = "offsets.after"  # offsets are in the transaction, it is not decided
    COMMIT_BEFORE = "commit.before"
    COMMIT_AFTER = "commit.after"  # the log said: committed
    # The broker (and the embedded log), in the order of one commit.
    DECISION_BEFORE = "decision.before"  # EndTxn received, nothing in the journal
    DECISION_AFTER = "decision.after"  # PREPARE is in the journal, no marker
    MARKERS_BEFORE = "markers.before"
    MARKERS_AFTER = "markers.after"  # the markers are in the journal, COMPLETE is not
    SYNC_BEFORE = "sync.before"
    SYNC_AFTER = "sync.after"  # durable, the reply has not left
    # The delivery, in the order of one batch at a sink.
    CLAIM_AFTER = "claim.after"  # the sink has named this delivery as the owner of a partition
    BATCH_BEFORE = "batch.before"  # a batch was read, the sink's transaction is not begun
    # … by cuts, where the sink holds no position: these, then sink.*, then position.* (in the delivery topic).
    CUT_BEFORE = "cut.before"  # a cut is due, nobody else knows
    CUT_AFTER = "cut.after"  # it is written down, no byte of it has left
    # … that the sink prepares first (TwoPhase): rows.*, prepare.*, decide.* (in the delivery topic), then sink.*.
    PREPARE_BEFORE = "prepare.before"
    PREPARE_AFTER = "prepare.after"  # the sink can commit it whatever happens, nobody has said that it shall
    DECIDE_BEFORE = "decide.before"
    DECIDE_AFTER = "decide.after"  # it is committed in the log that the sink shall commit
    SETTLE_BEFORE = "settle.before"  # a new owner has read that a cut is in doubt
    SETTLE_AFTER = "settle.after"  # what a former owner left at the sink is committed or gone
    # … of a record that the sink will never take, under on_error="dead-letter".
    REFUSE_BEFORE = "refuse.before"  # the sink has refused it, nobody else knows
    REFUSE_AFTER = "refuse.after"  # it is a dead letter and written off in the log, no batch was written without it
    OBJECT_BEFORE = "object.before"
    OBJECT_AFTER = "object.after"  # the object is there, no manifest tells of it
    ROWS_BEFORE = "rows.before"
    ROWS_AFTER = "rows.after"  # rows written inside the sink's transaction, position not yet
    POSITION_BEFORE = "position.before"
    POSITION_AFTER = "position.after"
    SINK_BEFORE = "sink.before"  # before the sink's COMMIT
    SINK_AFTER = "sink.after"  # the sink has committed, nobody else knows
    # A person's move of a delivery's position (`semel sink`), at a sink where it is more than one step.
    MOVE_PART = "move.part"  # a part of the move is done, the rest is not
    # The ingest of a source, in the order of one transaction.
    INGEST_CLAIM = "ingest.claim"  # the log has named this ingest as the owner of a lane, its positions are read
    INGEST_READ = "ingest.read"  # a portion was read from the source, nothing of it is written
    INGEST_RECORDS = "ingest.records"  # its records are in the open transaction, its position is not
    INGEST_POSITION = "ingest.position"  # both are in the transaction, it is not decided
    INGEST_COMMIT = "ingest.commit"  # the log said: committed; the source has not heard of it
    # Refusals: a superseded owner tried and was told no. Counted, so that a proof can say that it was tried.
    LOG_FENCED = "fenced.log"  # the log refused this worker's transaction
    SINK_FENCED = "fenced.sink"  # the sink refused this delivery's batch; by cuts: the log its cut or position
    SOURCE_FENCED = "fenced.source"  # the log refused the transaction of a superseded ingest
    SINK_STALE = "stale.sink"  # rows of this delivery's batch were as old as what the sink holds: without effect


class Steps(Protocol):
    def reached(self, step: Step) -> None: ...


class NoSteps:
    """Production: reaching a step does nothing."""

    def reached(self, step: Step) -> None:
        return
