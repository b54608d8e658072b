"""The command `manyhands`. Each command imports what it needs only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from manyhands.errors import ConfigurationError, ManyhandsError, UserError

_EVERYTHING_AFTER = {"allow_interspersed_args": False}

app = typer.Typer(
    name="manyhands",
    help="Many unreliable machines learn one model together, and nothing is lost.",
    epilog="Begin with: manyhands run -n 4 train.py",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

Script = Annotated[Path, typer.Argument(help="The training script.", show_default=False)]
Arguments = Annotated[
    list[str] | None, typer.Argument(help="Whatever follows goes to the script.", show_default=False)
]
Folder = Annotated[
    Path | None,
    typer.Option(
        help="The run's folder. A run there that has not ended goes on, with the options given now, but "
        "only while a worker that holds its state lives. [default: runs/ID]"
    ),
]
Port = Annotated[int, typer.Option(help="The port the hub listens on; 0 takes a free one.")]
MaxRestarts = Annotated[int, typer.Option(help="How often each worker that dies is started again.")]
Lease = Annotated[float, typer.Option(help="Seconds of silence after which a worker counts as lost.")]
Patience = Annotated[
    float, typer.Option(help="Stretches every time limit that is derived from measurements.")
]
Plain = Annotated[bool, typer.Option("--plain", help="Plain lines, no live table, on a terminal too.")]
Token = Annotated[
    str | None, typer.Option(help="The run's secret.", envvar="MANYHANDS_TOKEN", show_default=False)
]
HubUrl = Annotated[
    str | None, typer.Option("--hub", help="The hub's address, http://HOST:PORT.", show_default=False)
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="URL",
        help="Keep the committed state there: a folder, or a URL that fsspec knows.",
        show_default=False,
    ),
]
CheckpointEvery = Annotated[
    str, typer.Option(metavar="TIME", help="How often: 30s, 10min, 1h, 100versions; and at the end.")
]
CheckpointKeep = Annotated[int, typer.Option(help="How many checkpoints stay.")]
Resume = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="Begin with the newest checkpoint there, or with this one; any number of workers.",
        show_default=False,
    ),
]
Run = Annotated[
    str | None, typer.Argument(help="A run's folder or id; the newest run without.", show_default=False)
]


@app.command(context_settings=_EVERYTHING_AFTER)
def run(
    script: Script,
    arguments: Arguments = None,
    workers: Annotated[int, typer.Option("-n", "--workers", help="How many workers.")] = 1,
    folder: Folder = None,
    port: Port = 0,
    max_restarts: MaxRestarts = 5,
    lease: Lease = 10.0,
    patience: Patience = 1.0,
    checkpoint: Checkpoint = "",
    checkpoint_every: CheckpointEvery = "10min",
    checkpoint_keep: CheckpointKeep = 3,
    resume: Resume = "",
    plain: Plain = False,
) -> None:
    """Run a training script on this machine: a hub and several workers.

    A worker that dies is started again and catches up; so is the hub. Ctrl-C lets everybody leave in
    order, a second one kills. The run's folder keeps hub.db, summary.json and report.html. With
    --checkpoint the run goes on after all workers have died, and with --resume another day.

    **Example**

    ```sh
    manyhands run -n 4 train.py --epochs 3
    manyhands run -n 4 --folder runs/mine train.py
    manyhands run -n 4 --checkpoint kept --checkpoint-every 5min train.py
    manyhands run -n 2 --checkpoint kept --resume kept train.py
    ```
    """
    from manyhands.cli.running import supervise
    from manyhands.engines.options import LocalOptions

    options = LocalOptions(
        script,
        tuple(arguments or ()),
        workers=workers,
        folder=folder,
        port=port,
        max_restarts=max_restarts,
        lease=lease,
        patience=patience,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        checkpoint_keep=checkpoint_keep,
        resume=resume,
    )
    _exit(lambda: supervise(options, plain))


@app.command()
def hub(
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Port = 0,
    expected: Annotated[int, typer.Option(help="How many workers start together.")] = 1,
    folder: Folder = None,
    lease: Lease = 10.0,
    checkpoint: Checkpoint = "",
    checkpoint_every: CheckpointEvery = "10min",
    checkpoint_keep: CheckpointKeep = 3,
    resume: Resume = "",
    take_over: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="The id of a run whose hub and folder are lost: go on with what its workers report.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Run a hub alone, for workers on other machines.

    Prints the line with which a worker joins. The token comes from MANYHANDS_TOKEN; without one a new
    one is made. Killed and started again on the same folder, the hub takes up where it was. Where the
    folder is lost, another takes over, under the same address or one that the workers know as well:
    they may be given several, with commas between. It needs the run's token.

    **Example**

    ```sh
    manyhands hub --host 0.0.0.0 --port 7000 --expected 8
    MANYHANDS_TOKEN=... manyhands hub --host 0.0.0.0 --port 7000 --take-over 20261123-101500-9f3a
    ```
    """
    from manyhands.cli.hub import serve

    kept = ("--checkpoint", checkpoint, "--checkpoint-every", checkpoint_every)
    more = (*kept, "--checkpoint-keep", str(checkpoint_keep), "--resume", resume)
    _exit(lambda: serve(host, port, expected, folder, lease, more, take_over))


@app.command(context_settings=_EVERYTHING_AFTER)
def join(
    hub: Annotated[
        str,
        typer.Option(
            help="The hub's address, http://HOST:PORT; several with commas, where another may take over.",
            show_default=False,
        ),
    ],
    script: Script,
    arguments: Arguments = None,
    token: Token = None,
    name: Annotated[
        str | None,
        typer.Option(help="The worker's name in the run. [default: the host's name and four digits]"),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="This machine's address for the other workers. [default: the one that reaches the hub]",
            envvar="MANYHANDS_HOST",
            show_default=False,
        ),
    ] = None,
    max_restarts: MaxRestarts = 5,
    patience: Patience = 1.0,
    plain: Plain = False,
) -> None:
    """Join a hub on another machine with one worker, which is started again when it dies.

    The other workers connect to this one at the address from which it reaches the hub. Where that is
    the wrong one (a tunnel, several networks), name another of this machine with --host.

    **Example**

    ```sh
    MANYHANDS_TOKEN=... manyhands join --hub http://10.0.0.5:7000 train.py --epochs 3
    ```
    """
    from manyhands.cli.joining import join_hub

    _exit(
        lambda: join_hub(
            hub, token, name, host, script, tuple(arguments or ()), max_restarts, patience, plain
        )
    )


@app.command()
def status(run: Run = None, hub: HubUrl = None, token: Token = None) -> None:
    """Show a run: its figures, workers, last rounds and what happened.

    **Example**

    ```sh
    manyhands status
    manyhands status runs/20261123-101500-9f3a
    manyhands status --hub http://10.0.0.5:7000 --token ...
    ```
    """
    from manyhands.cli.status import show

    _exit(lambda: show(run, hub, token))


@app.command()
def report(run: Run = None) -> None:
    """Draw a run's report again, and print its path and the summary.

    **Example**

    ```sh
    manyhands report 20261123-101500-9f3a
    ```
    """
    from manyhands.cli.status import write_and_show

    _exit(lambda: write_and_show(run))


@app.command(context_settings=_EVERYTHING_AFTER)
def chaos(
    script: Annotated[Path | None, typer.Argument(help="The training script.", show_default=False)] = None,
    arguments: Arguments = None,
    workers: Annotated[int, typer.Option("-n", "--workers", help="How many workers.")] = 4,
    every: Annotated[float, typer.Option(help="Seconds between two faults, about.")] = 5.0,
    seconds: Annotated[float, typer.Option(help="How long the storm lasts, at most.")] = 60.0,
    faults: Annotated[
        str, typer.Option(help="Which: kill, stop, slow, cut, corrupt, kill-hub, with commas.")
    ] = "kill,stop,kill-hub",
    seed: Annotated[int, typer.Option(help="The same seed draws the same storm.")] = 0,
    baseline: Annotated[bool, typer.Option(help="Train undisturbed first, to compare with.")] = True,
    attach: Annotated[
        str,
        typer.Option(metavar="RUN", help="Do it to a run on this machine that goes on.", show_default=False),
    ] = "",
    folder: Folder = None,
    lease: Lease = 10.0,
) -> None:
    """Train in a storm of faults, and see what it costs.

    Trains twice: left alone, and with workers killed (kill), stopped and woken (stop), slowed down to a
    quarter (slow), with a bit of their committed state turned over (corrupt) or their connections broken
    (cut: needs root), and the hub killed (kill-hub). The first fault comes once all have started to learn.

    Prints goodput beside the undisturbed training and beside what the processes that could work allow, the
    longest waits for a version, samples lost or counted twice, whether the digests of every version are
    equal, and the last loss of both. What was done, and who could work, is the word of who does it; samples
    and digests are what the workers write down, not what the hub's ledger says. All of it is kept in
    chaos.json, and drawn in report.html; exit code 1 where a sample was lost or models differ.

    With --attach it does so to a run on this machine that goes on, beside what that did before. Its workers
    write nothing down, so samples are the ledger's word, and no bit can be turned over.

    **Example**

    ```sh
    manyhands chaos -n 4 --every 5 --seconds 120 train.py
    manyhands chaos -n 4 --faults kill,corrupt --seed 7 train.py --epochs 3
    manyhands chaos --attach runs/mine --faults kill,stop --seconds 60
    ```
    """
    from manyhands.cli.chaos import attached, storm
    from manyhands.engines.options import LocalOptions

    def disturb() -> int:
        if attach:
            return attached(attach, seed, every, seconds, faults, lease)
        if script is None:
            raise ConfigurationError("give a training script to disturb, or --attach RUN")
        options = LocalOptions(script, tuple(arguments or ()), workers=workers, folder=folder, lease=lease)
        return storm(options, seed, every, seconds, faults, baseline)

    _exit(disturb)


checkpoint_app = typer.Typer(
    name="checkpoint",
    help="See what `manyhands run --checkpoint URL` has kept, verify it, and take the model out.",
    no_args_is_help=True,
)
app.add_typer(checkpoint_app)
KeptAt = Annotated[str, typer.Argument(help="What --checkpoint was given, or one checkpoint under it.")]


@checkpoint_app.command("ls")
def checkpoint_ls(url: KeptAt) -> None:
    """List the checkpoints under a URL, the newest first.

    **Example**

    ```sh
    manyhands checkpoint ls kept
    ```
    """
    from manyhands.cli.checkpoint import listing

    _exit(lambda: listing(url))


@checkpoint_app.command("verify")
def checkpoint_verify(url: KeptAt) -> None:
    """Read checkpoints, and compare each file with its digest; exit code 1 where one is torn or damaged.

    **Example**

    ```sh
    manyhands checkpoint verify s3://bucket/runs/mine
    ```
    """
    from manyhands.cli.checkpoint import verify

    _exit(lambda: verify(url))


@checkpoint_app.command("export")
def checkpoint_export(
    url: KeptAt,
    out: Annotated[Path, typer.Argument(help="A .safetensors file, or .pt for a torch state_dict.")],
) -> None:
    """Write the model's tensors to a file that loads without manyhands.

    **Example**

    ```sh
    manyhands checkpoint export kept model.safetensors
    manyhands checkpoint export kept/v00000120-4f6a90c1-3 model.pt
    ```
    """
    from manyhands.cli.checkpoint import export_model

    _exit(lambda: export_model(url, out))


@app.command()
def version() -> None:
    """Print the version.

    **Example**

    ```sh
    manyhands version
    ```
    """
    from manyhands._version import __version__

    print(f"manyhands {__version__}")


def _exit(command: Callable[[], int]) -> None:
    """Ends with the command's code. Our errors become one sentence: 2 for what was asked, 1 for the rest."""
    try:
        code = command()
    except ManyhandsError as error:
        print(f"manyhands: {error}", file=sys.stderr)
        code = 2 if isinstance(error, ConfigurationError | UserError) else 1
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says so at its end
        code = 141
    raise typer.Exit(code)


def main() -> None:
    """The entry point of the command `manyhands`."""
    app()
