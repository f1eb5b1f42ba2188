"""``python -m allmrec_lib data beauty``: the library's commands by name."""

from __future__ import annotations

import sys

from .datasets.__main__ import main as data

COMMANDS = {"data": data}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: python -m allmrec_lib {{{','.join(COMMANDS)}}} ... (--help after a command says more)", file=sys.stderr)
        return 2
    return COMMANDS[arguments[0]](arguments[1:], prog=f"python -m allmrec_lib {arguments[0]}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
