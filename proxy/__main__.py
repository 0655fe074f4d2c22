"""`python -P -m proxy` is `wardgate proxy`: for units and parents that know an interpreter, not a script.

Nothing may be put here.

Kind: IO.
"""

import sys

from proxy.cli import main

if __name__ == "__main__":
    main(["proxy", *sys.argv[1:]], prog_name="wardgate")
