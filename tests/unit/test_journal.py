import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plato_core.tracking.journal import Journal


def _drained(journal: Journal) -> list[int]:
    return [op["n"] for _, op in journal.read(10_000)]


def test_operations_come_back_once_and_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    numbers = [journal.append({"op": "tags", "n": n}) for n in range(5)]
    assert numbers == [1, 2, 3, 4, 5]
    assert [op["n"] for _, op in journal.read(3)] == [0, 1, 2]
    assert _drained(journal) == [3, 4]
    assert _drained(journal) == []


def test_a_last_line_cut_by_a_kill_is_dropped_and_its_number_used_again(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append({"op": "tags", "n": 0})
    journal.close()
    (segment,) = tmp_path.glob("journal-*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"op":"tags","n"')
    again = Journal(tmp_path)
    assert again.append({"op": "tags", "n": 1}) == 2
    assert _drained(again) == [0, 1]
    assert again.pending == 2


def test_a_damaged_line_does_not_stop_the_others(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for n in range(3):
        journal.append({"op": "tags", "n": n})
    journal.close()
    (segment,) = tmp_path.glob("journal-*.jsonl")
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(lines[0] + b"\0\0\0\n" + lines[2])
    ops = [op for _, op in Journal(tmp_path).read(10)]
    assert [op["op"] for op in ops] == ["tags", "damaged", "tags"]


def test_reading_resumes_behind_what_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for n in range(6):
        journal.append({"op": "tags", "n": n})
    journal.read(6)
    journal.done([1, 2, 4, 6])
    journal.close()
    again = Journal(tmp_path)
    assert list(again.unfinished()) == [(3, {"op": "tags", "n": 2}), (5, {"op": "tags", "n": 4})]
    assert again.read(10) == list(again.unfinished())
    assert again.pending == 2


def test_what_was_read_but_not_done_is_read_again_after_a_restart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for n in range(3):
        journal.append({"op": "tags", "n": n})
    journal.read(3)
    journal.close()
    assert _drained(Journal(tmp_path)) == [0, 1, 2]


def test_segments_are_deleted_once_all_in_them_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=200)
    for n in range(100):
        journal.append({"op": "tags", "n": n})
    assert len(list(tmp_path.glob("journal-*"))) > 5
    ops = journal.read(100)
    journal.done([number for number, _ in ops if number != 50])
    journal.commit()
    first = min(int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("journal-*"))
    assert 40 < first <= 50
    journal.done([50])
    journal.commit()
    assert len(list(tmp_path.glob("journal-*"))) == 1
    assert journal.pending == 0
    assert journal.append({"op": "tags", "n": 100}) == 101
    assert _drained(journal) == [100]


def test_numbers_go_on_after_everything_was_done_and_the_journal_reopened(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=50)
    for n in range(10):
        journal.append({"op": "tags", "n": n})
    journal.done([number for number, _ in journal.read(10)])
    journal.close()
    again = Journal(tmp_path)
    assert again.pending == 0
    assert again.append({"op": "tags", "n": 10}) == 11
    assert _drained(again) == [10]


def test_what_is_not_json_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(ValueError):
        journal.append({"op": "metrics", "values": {"a": float("nan")}})
    journal.append({"op": "tags", "n": 0})
    assert _drained(journal) == [0]


@pytest.mark.parametrize("value", ["null", None, "\ud800", 2**70, -0.0, 1e-300, {"a": [True, "ü"]}])
def test_odd_values_come_back_as_they_were(tmp_path: Path, value: object) -> None:
    journal = Journal(tmp_path)
    journal.append({"op": "tags", "values": {"odd": value}})
    assert journal.read(1) == [(1, {"op": "tags", "values": {"odd": value}})]


def test_the_cursor_is_whole_at_any_time(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for n in range(10):
        journal.append({"op": "tags", "n": n})
    journal.read(10)
    journal.done(range(1, 11, 2))
    journal.commit()
    assert json.loads((tmp_path / "cursor.json").read_text()) == {
        "low": 2,
        "done": [[n, n] for n in (3, 5, 7, 9)],
    }
    assert not list(tmp_path.glob(".*"))


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(1, 20)),
        st.tuples(st.just("done"), st.integers(0, 2**16)),
        st.tuples(st.just("reopen"), st.integers(0, 30)),
    ),
    max_size=40,
)


@given(_STEPS)
@settings(max_examples=150, deadline=None)
def test_any_order_of_append_read_done_and_restart_yields_each_operation_exactly_once(
    steps: list[tuple[str, int]],
) -> None:
    """Done means sent: an operation is sent once if no restart ever makes it come back after it was done."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        journal, appended = Journal(path, segment_bytes=120), 0
        in_hand: dict[int, int] = {}
        sent: list[int] = []
        for what, value in steps:
            if what == "append":
                for _ in range(value):
                    journal.append({"op": "tags", "n": appended})
                    appended += 1
            elif what == "read":
                got = journal.read(value)
                assert [number for number, _ in got] == sorted(number for number, _ in got)
                in_hand |= {number: op["n"] for number, op in got}
            elif what == "done":
                chosen = [number for index, number in enumerate(in_hand) if value >> (index % 16) & 1]
                sent += [in_hand.pop(number) for number in chosen]
                journal.done(chosen)
                journal.commit()
            else:
                journal.close()
                if value % 3 == 0:  # a kill in the middle of a line
                    with max(path.glob("journal-*")).open("ab") as file:
                        file.write(b'{"torn":' + b" " * value)
                in_hand.clear()
                journal = Journal(path, segment_bytes=120)
            assert journal.pending == appended - len(sent)
        rest = in_hand | {number: op["n"] for number, op in journal.read(10_000)}
        assert [rest[number] for number in sorted(rest)] == sorted(rest.values())
        assert sorted(sent + list(rest.values())) == list(range(appended))
        journal.close()
