"""Delta tables, in a folder and on a real S3 server: through the contract kit, through the tests of every transactional
sink, and what only a log of versions gets wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from semel.sinks import DeltaLake
from semel.testing.contracts import ContractTests, Subject
from tests.servers import lake_subjects as subjects
from tests.sinks.conftest import MakeSink
from tests.sinks.test_tables import (  # noqa: F401
    test_a_key_of_any_type_finds_its_row,
    test_any_value_with_named_fields_is_a_row,
    test_different_keys_have_different_bytes,
    test_equal_keys_have_equal_bytes,
    test_every_type_arrives_as_it_was_committed,
    test_what_is_no_row_is_refused_before_it_enters_the_outbox,
)
from tests.sinks.test_transactional import (  # noqa: F401
    test_a_batch_written_again_changes_nothing,
    test_a_claim_returns_what_the_last_batch_left,
    test_a_gap_is_not_written,
    test_a_large_batch_is_the_same_as_a_small_one,
    test_a_renamed_sink_takes_the_shape_of_its_original_when_the_type_is_unknown,
    test_a_superseded_owner_writes_nothing,
    test_a_value_that_is_refused_is_named_and_nothing_is_written,
    test_none_deletes_the_row_of_its_key,
    test_none_without_a_key_is_refused,
    test_only_renamed_tables_are_dropped,
    test_rows_and_position_are_one,
    test_the_kind_is_transactional,
    test_the_last_value_of_a_key_replaces_the_row,
    test_without_a_key_every_value_is_inserted,
)
from tests.support.seaweed import SeaweedProcess


@pytest.fixture
def make_sink(tmp_path: Path) -> MakeSink:
    return lambda table="totals", **said: DeltaLake(tmp_path / table, **said)


class TestDelta(ContractTests):
    """In a folder, by key and appended."""

    @pytest.fixture(params=[subjects.delta_keyed, subjects.delta_appended], ids=["keyed", "appended"])
    def subject(self, request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
        return subjects.delta_subject(request.param, tmp_path)


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedProcess]:
    with SeaweedProcess(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


class TestDeltaOnS3(ContractTests):
    """On the real server, which is killed; the answers to commits are cut on the wire."""

    @pytest.fixture
    def subject(self, seaweed: SeaweedProcess) -> Subject:
        def crash() -> None:
            seaweed.kill()
            seaweed.start()

        return subjects.delta_s3_subject(subjects.delta_s3_keyed, seaweed.port, crash)
