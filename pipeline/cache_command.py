"""bin/cache: all its commands. What a command needs beyond the store is imported when it runs."""

if __name__ == "__main__":  # before all that takes a while to load
    from cache.early import end_on_interrupt

    end_on_interrupt()

import click

from cache.console import HELP_OPTIONS, examples, run
from cache.inspect_command import list_command, show_command, stats_command
from cache.keep_command import prune_command, verify_command
from cache.remote_command import pull_command, push_command
from cache.transfer_command import export_command, import_command
from pipeline.certify_command import certify_command
from pipeline.explain_command import explain_command
from pipeline.report_command import report_command

main = click.Group(
    "cache",
    commands=[
        stats_command,
        list_command,
        show_command,
        report_command,
        explain_command,
        certify_command,
        verify_command,
        prune_command,
        export_command,
        import_command,
        push_command,
        pull_command,
    ],
    help="Look into the store of datasets, keep it whole and small, and carry datasets elsewhere.",
    epilog=examples("bin/cache list", "bin/cache show demo", "bin/cache verify", "bin/cache prune --unreferenced"),
    context_settings=HELP_OPTIONS,
)


if __name__ == "__main__":
    run(main, "bin/cache")
