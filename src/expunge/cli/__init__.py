"""The command line: each verb reads its arguments, calls the library, prints data on stdout and progress on stderr.

A verb is a function in a file of this folder, which imports what it needs when it is called: `--help` needs no torch.
"""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path

import click

from expunge.base.errors import ExpungeError
from expunge.base.terminal import OutputClosed, say
from expunge.cli import parts, records, runs, studies
from expunge.cli.group import cli

__all__ = ["cli", "main", "parts", "records", "runs", "studies"]


def main() -> None:
    """The console script: prints one message for a user's mistake, and exits with the right code."""
    try:
        cli.main(standalone_mode=False, prog_name="expunge", complete_var="_EXPUNGE_COMPLETE")
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("interrupted; finished stages are kept, run the same command again to continue", error=True)
        sys.exit(130)
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        say(usage.getvalue().rstrip(), error=True)
        sys.exit(2)
    except ExpungeError as error:
        say(f"expunge: {error}", error=True)
        sys.exit(error.exit_code)
    except OutputClosed:
        sys.exit(0)
    except SystemExit as left:
        # Click exits with 1, a failed gate's code, when the reader of a help text closes the pipe.
        if Path(traceback.extract_tb(left.__traceback__)[-1].filename).parent == Path(click.__file__).parent:
            sys.exit(0)
        say(f"expunge: a module that the spec names ended the program, with exit code {left.code!r}", error=True)
        sys.exit(4)
    except MemoryError:
        say("expunge: there is not enough memory; finished stages are kept", error=True)
        sys.exit(4)
    except Exception:
        say(traceback.format_exc().rstrip(), error=True)
        say("expunge: this is a bug, in expunge or in a part that the spec names; finished stages are kept", error=True)
        sys.exit(4)
