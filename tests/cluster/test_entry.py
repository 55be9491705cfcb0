"""The console script, from its first import on."""

import signal
import subprocess
import sys

# Ctrl-C in the middle of an import: of the module that asks for click.
INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "click":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
sys.argv = ["gcsr", "--version"]
from cluster.entry import run
run()
"""


def start(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_ctrl_c_while_it_is_imported_leaves_no_traceback():
    done = start(INTERRUPTED)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_ctrl_c_that_nohup_ignores_is_ignored():
    done = start(
        INTERRUPTED.replace("import os, signal, sys", "import os, signal, sys\nsignal.signal(2, signal.SIG_IGN)")
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gcsr, version ")


def test_ctrl_c_afterwards_is_heard_by_the_command():
    code = "import signal, sys; sys.argv = ['gcsr', 'specs']; from cluster import cli, entry; "
    code += "cli.cli.commands['specs'].callback = lambda **_: signal.raise_signal(signal.SIGINT); entry.run()"
    done = start(code)
    assert (done.returncode, done.stderr.strip()) == (130, "gcsr: interrupted")
