"""A trial's failure in one line, from what Ray 2.60 and Tune write about it."""

import pytest

from plato_core.training.failures import MAX_LENGTH, failure_line

RAISED = """\x1b[36mray::ResourceTrainable.train()\x1b[39m (pid=27358, ip=127.0.0.1)
  File "/env/gymnasium/wrappers/common.py", line 393, in step
    return super().step(action)
           ^^^^^^^^^^^^^^^^^^^^
  File "/env/odd_envs.py", line 61, in step
    raise ValueError("broken sensor")
ValueError: broken sensor
"""
RAISED_AGAIN = (
    RAISED
    + """
The above exception was the direct cause of the following exception:

\x1b[36mray::ResourceTrainable.train()\x1b[39m (pid=27358, ip=127.0.0.1)
  File "/env/ray/rllib/env/single_agent_env_runner.py", line 200, in _try_env_step
    raise RuntimeError from error
RuntimeError
"""
)
WHILE_HANDLING = f"""{RAISED.replace("broken sensor", "the first")}
During handling of the above exception, another exception occurred:

{RAISED.replace("broken sensor", "the second")}"""
BUILT = """The actor died because of an error raised in its creation task, ray::ResourceTrainable.__init__()
  File "/env/odd_envs.py", line 47, in __init__
    raise ValueError("no sensor\\nnot even a spare one")
ValueError: no sensor
not even a spare one"""
OURS = """ray::ResourceTrainable.train() (pid=1)
  File "/env/plato_core/training/health.py", line 37, in train
    raise TrialError("the policy's weights have become NaN or infinite")
plato_core.errors.TrialError: the policy's weights have become NaN or infinite
"""
DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: with_resources.<locals>.ResourceTrainable
\tpid: 26530
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: """
KILLED = f"{DIED}Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: ..."
EXITED = f"{DIED}Worker exits unexpectedly. Worker exits with an exit code 3."
OUT_OF_MEMORY = """2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1) \
was 22.41GB used / 23.54GB limit (0.952)
OOM kill reason: Memory usage 24061561728B exceeded threshold of 24012677120B (95.0% of 25276502016B limit)
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
31465\t0.38\t/env/bin/python -m plato_core.sweep
"""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (RAISED, "ValueError: broken sensor"),
        (RAISED_AGAIN, "ValueError: broken sensor"),
        (WHILE_HANDLING, "ValueError: the second"),
        (BUILT, "ValueError: no sensor"),
        (OURS, "the policy's weights have become NaN or infinite"),
        (KILLED, "its process died: killed (out of memory, perhaps), crashed, or ended by its environment"),
        (EXITED, "its process ended itself with exit code 3"),
        (
            OUT_OF_MEMORY,
            "out of memory: Ray ended its process at 22.41GB of 23.54GB in use; "
            "run fewer trials at once, or smaller ones",
        ),
        ("something unheard of\nTuneError: the end\n", "TuneError: the end"),
        ("", "no message"),
    ],
)
def test_a_failure_is_one_line_that_says_what_went_wrong(text: str, line: str) -> None:
    assert failure_line(text) == line


def test_an_endless_message_is_cut() -> None:
    assert len(failure_line(f"ValueError: {'x' * 10_000}")) == MAX_LENGTH
