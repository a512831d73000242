"""A pipeline's block settles its results together, each of them once, whatever became of it on the way."""

from __future__ import annotations

import pytest

from crdtkv.client.pipeline import PipelineCore, Result
from crdtkv.client.wire import Block
from crdtkv.errors import CrdtkvError, StorageError
from crdtkv.results import Commit

ORIGIN = "us@1-00000000"


def puts(count: int) -> tuple[PipelineCore, Block, list[Result[Commit | None]], list[str]]:
    """A pipeline of so many puts, taken to be sent: the block, the results, and what it is told at the end of them."""
    pipeline = PipelineCore()
    ended: list[str] = []
    pipeline.finish = lambda: ended.append("finished")
    results = [pipeline.put(f"k{number}", number) for number in range(count)]
    (block,) = pipeline.take()
    assert isinstance(block, Block)
    block.args[2] = [bytes([number]) for number in range(count)]
    return pipeline, block, results, ended


def seqs(results: list[Result[Commit | None]]) -> list[int]:
    return [0 if result.value is None else result.value.seq for result in results]


def test_one_answer_settles_all() -> None:
    pipeline, block, results, ended = puts(4)
    block.answer([ORIGIN, 7, 70], "token")
    assert seqs(results) == [7, 8, 9, 10] and all(result.ok for result in results)
    assert block.done() and pipeline.unanswered == 0 and ended == ["finished"]
    block.answer([ORIGIN, 70, 700], "token")  # a second answer changes nothing
    assert seqs(results) == [7, 8, 9, 10] and ended == ["finished"]


@pytest.mark.parametrize("sent_again", [True, False])
def test_what_was_answered_one_by_one_stays_as_it_is(sent_again: bool) -> None:
    """Part of the answers came, then the stream was lost: the rest is sent again, or answered with the others in one."""
    pipeline, block, results, ended = puts(4)
    for at in (0, 2):
        block.single(at).answer([ORIGIN, 100 + at, 100], "token")
        block.answered.add(at)
    assert pipeline.unanswered == 2 and not block.done()
    if sent_again:
        block.drop_done()
        assert block.count == 2 and block.args[0] == ["k1", "k3"] and block.args[2] == [b"\1", b"\3"]
        block.answer([ORIGIN, 7, 70], "token")
        assert seqs(results) == [100, 7, 102, 8]
    else:
        block.answer([ORIGIN, 7, 70], "token")
        assert seqs(results) == [100, 8, 102, 10]
    assert pipeline.unanswered == 0 and ended == ["finished"]


def test_a_failure_is_of_those_that_have_no_answer() -> None:
    pipeline, block, results, ended = puts(3)
    block.single(1).answer([ORIGIN, 5, 50], "token")
    block.answered.add(1)
    block.fail(StorageError("no"))
    assert block.done() and [type(result.error) for result in results] == [StorageError, type(None), StorageError]
    assert results[1].value is not None and pipeline.unanswered == 0 and ended == ["finished"]
    block.answer([ORIGIN, 7, 70], "token")  # too late
    with pytest.raises(StorageError):
        results[0].value  # noqa: B018  # raises
    assert ended == ["finished"]


def test_an_answer_of_another_form_fails_all() -> None:
    pipeline, block, results, ended = puts(2)
    block.answer([ORIGIN], "token")
    assert all(isinstance(result.error, CrdtkvError) for result in results) and pipeline.unanswered == 0 and ended == ["finished"]


def test_both_parts_of_a_block_settle_theirs() -> None:
    pipeline, block, results, ended = puts(5)
    first = block.split(2)
    block.answer([ORIGIN, 30, 300], "token")
    assert block.done() and not first.done() and pipeline.unanswered == 2 and not ended
    first.answer([ORIGIN, 7, 70], "token")
    assert seqs(results) == [7, 8, 30, 31, 32] and ended == ["finished"]
