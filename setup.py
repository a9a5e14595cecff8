"""What pyproject.toml cannot say: the wheel carries a compiled CNI plugin where it can.

Without a C compiler the installation goes on, the plugin's Python twin serves,
and the wheel is for every machine.  With one it is for Linux on this machine
type, but for every Python, since the plugin is a program of its own.
"""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel, get_platform
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SHIM = runpy.run_path(str(ROOT / "src" / "muslin" / "cni" / "build.py"))


class BuildWithShim(build_py):
    """Copy the modules, then compile the plugin beside them."""

    def run(self) -> None:
        super().run()
        source = ROOT / "src" if self.editable_mode else Path(self.build_lib)
        directory = source / "muslin" / "cni"
        try:
            why = SHIM["build"](directory)
        except OSError as e:
            why = str(e)
        if why:
            print(f"the CNI plugin stays in Python: {why}; {SHIM['MEND']}", file=sys.stderr)


class TaggedWheel(bdist_wheel):
    """Name the wheel after what it runs on."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        if SHIM["place"](Path(self.bdist_dir) / "muslin" / "cni").exists():
            platform = get_platform(self.bdist_dir).replace("-", "_").replace(".", "_")
        return python, abi, platform


setup(cmdclass={"build_py": BuildWithShim, "bdist_wheel": TaggedWheel})
