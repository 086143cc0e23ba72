"""``python -m mixtransfer.study.tether COMMAND ...``: run a command that ends with the process that started it.

A cell whose runner is killed must not go on without a sign of life: the next runner would start it a second time.
"""

import ctypes
import os
import signal
import sys

#: Linux's ``prctl`` option: the signal that a process gets when its parent ends. It stays over ``exec``.
PARENT_DEATH_SIGNAL = 1


def main() -> None:
    """Become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
