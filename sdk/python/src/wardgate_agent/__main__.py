"""`python -m wardgate_agent`: see cli.py.

Kind: IO.
"""

import sys

from wardgate_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
