import subprocess
import sys

_HANGS = """
import time
from concurrent.futures import ThreadPoolExecutor
from plato_core.processes import leave
ThreadPoolExecutor().submit(time.sleep, 600.0)
print("said")
leave(3)
"""


def test_a_process_leaves_though_a_thread_of_a_pool_is_still_at_work() -> None:
    done = subprocess.run([sys.executable, "-c", _HANGS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (3, "said\n")
