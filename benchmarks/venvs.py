"""Virtual environments of the peers, made on demand through pip and kept in Harken's cache folder."""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harken.assets import cache_folder
from harken.errors import AssetError

HERE = Path(__file__).resolve().parent


def interpreter(name: str, notify: Callable[[str], None]) -> Path:
    """Return the Python of a peer's environment, made now if it is not there yet.

    torch is installed first, so that what pip is configured to prefer (such as a CPU build) stays. What stands in
    `requirements-NAME-nodeps.txt` is installed last and without its own requirements.

    Args:
        name: of the `requirements-NAME.txt` beside this file.
        notify: told in one line what takes long.

    Raises:
        AssetError: pip failed; its last lines are in the message.
    """
    files = [
        path for path in (HERE / f"requirements-{name}.txt", HERE / f"requirements-{name}-nodeps.txt") if path.exists()
    ]
    # The pins are part of the folder's name: other pins never find the old environment.
    digest = hashlib.sha256(b"\n".join(path.read_bytes() for path in files)).hexdigest()[:8]
    folder = cache_folder() / "benchmarks" / f"venv-{name}-{digest}"
    python = folder / "bin" / "python"
    if (folder / ".installed").exists():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    notify(f"installing the peer into {folder} (a few minutes, torch is large)")
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = [line for line in files[0].read_text(encoding="utf-8").splitlines() if line.startswith("torch==")]
    _run([*pip, *torch])
    _run([*pip, "-r", str(files[0])])
    for path in files[1:]:
        _run([*pip, "--no-deps", "-r", str(path)])
    (folder / ".installed").touch()
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        last = " | ".join(line.strip() for line in done.stdout.splitlines()[-5:])
        raise AssetError(
            f"`{' '.join(command)}` failed: {last}; see that pip reaches a package index, then run it again"
        )
