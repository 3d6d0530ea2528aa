"""A command in a process of its own, which must end well without importing what takes seconds."""

import subprocess
import sys


def answers_at_once(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from colakit.cli.app import main\n"
        "try:\n"
        f"    main({args!r})\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'tokenizers', 'tensorboard', 'matplotlib'}\n"
        "heavy &= sys.modules.keys()\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
