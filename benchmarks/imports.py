"""What a user waits for first: ``import probjepa`` over ``import torch``, and ``probjepa --help``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import arguments, compare, parse, write


def process(*command: str) -> Callable[[], object]:
    """Return what runs a command to its end; one that fails raises CalledProcessError."""
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def main() -> None:
    args = parse(arguments(__doc__, "imports", repeats=10))
    python = sys.executable
    candidates = {
        "import torch": process(python, "-c", "import torch"),
        "import torch, probjepa": process(python, "-c", "import torch, probjepa"),
        "import probjepa": process(python, "-c", "import probjepa"),
    }
    help_page = process(str(Path(python).parent / "probjepa"), "--help")
    try:
        help_page()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"left out: probjepa --help does not run here ({error})", file=sys.stderr)
    else:
        candidates["probjepa --help"] = help_page

    result = compare("imports", candidates, reference="import torch", repeats=args.repeats)
    more = result.pairwise("import torch, probjepa", lambda mine, theirs: mine - theirs)
    result.figures = {"probjepa_over_torch_seconds": vars(more)}
    result.target("import torch, probjepa − import torch", more.median, 0.5, "s")
    if "probjepa --help" in candidates:
        result.target("probjepa --help", result.time("probjepa --help").median, 0.8, "s")
    write(result, args.out)


if __name__ == "__main__":
    main()
