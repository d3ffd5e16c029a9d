"""The command line. Nothing heavy is imported before a command runs, so that `--help` answers at once."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from onceflow.escaping import redacted
from onceflow.stopping import ends_when_told

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_LASTING = ("up", "worker", "learn", "serve", "run")


class _Commands(TyperGroup):
    """Turns errors raised on purpose into one line and an exit code; any other error keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - as in the base
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except _known_errors() as error:
            typer.echo(f"onceflow: {redacted(str(error))}", err=True)
            raise typer.Exit(exit_code(error)) from None


def _known_errors() -> tuple[type[Exception], ...]:
    errors = sys.modules.get("featurestore.errors")  # never raised before it was imported, and its import is slow
    return (errors.OnceflowError,) if errors else ()


def exit_code(error: Exception) -> int:
    """How the process ends after this error."""
    errors = sys.modules["featurestore.errors"]
    return MISUSED if isinstance(error, errors.ConfigError | errors.DefinitionError) else FAILED


app = typer.Typer(
    name="onceflow",
    cls=_Commands,
    help="Define a feature once: it flows, exactly once, from Kafka to Redis, Parquet and a learner.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line."""
    gc.set_threshold(50_000, 20, 50)  # with Python's own, to look for garbage among imports takes a tenth of the start
    app()


def _run(command: str, **options: Any) -> None:  # noqa: ANN401 - the signatures below type them
    with ends_when_told() if command in _LASTING else nullcontext():
        code = import_module(f"onceflow.commands.{command}").run(**options)
    if code:
        raise typer.Exit(code)


Module = Annotated[str, typer.Option("--module", "-m", help="Definitions: a dotted module or a path to a .py file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@app.command(epilog="Example: onceflow demo --days 30")
def demo(
    days: Annotated[int | None, typer.Option(min=1, help="Replay only the first days of the year.")] = None,
    json: Json = False,
) -> None:
    """Show the whole system on real flights."""
    _run("demo", days=days, json=json)


@app.command(epilog="Example: onceflow init fraud && cd fraud && onceflow check -m features")
def init(
    directory: Annotated[Path, typer.Argument(help="Where; made if it is not there.")], json: Json = False
) -> None:
    """Write a new project: definitions, sample events, compose file."""
    _run("init", directory=directory, json=json)


@app.command(epilog="Example: onceflow up --kafka-port 0 --redis-port 0 --json")
def up(
    kafka_port: Annotated[int, typer.Option(min=0, max=65_535, help="0 means a free one.")] = 9092,
    redis_port: Annotated[int, typer.Option(min=0, max=65_535, help="0 means a free one.")] = 6379,
    json: Json = False,
) -> None:
    """Run embedded Kafka and Redis until interrupted.

    The broker speaks Kafka's protocol; both keep everything in memory and forget it when they stop.
    """
    _run("up", kafka_port=kafka_port, redis_port=redis_port, json=json)


@app.command(epilog="Example: onceflow check -m features")
def check(module: Module, json: Json = False) -> None:
    """Validate definitions, without any server."""
    _run("check", module=module, json=json)


@app.command(epilog="Example: onceflow apply -m features")
def apply(module: Module, json: Json = False) -> None:
    """Register definitions; show changes and their cost."""
    _run("apply", module=module, json=json)


@app.command(epilog="Example: onceflow produce transactions --from transactions.jsonl --key card_id")
def produce(
    *,
    topic: Annotated[str, typer.Argument(help="The Kafka topic; created if it is not there.")],
    file: Annotated[Path, typer.Option("--from", help="A .jsonl, .csv or .parquet file.")],
    key: Annotated[list[str] | None, typer.Option(help="Key column; may be given several times.")] = None,
    module: Annotated[
        str | None, typer.Option("--module", "-m", help="Take key and types from the topic's source in this module.")
    ] = None,
    timestamp: Annotated[str | None, typer.Option(help="Column for Kafka's record timestamps; else now.")] = None,
    partitions: Annotated[int | None, typer.Option(min=1, help="Of a topic that is created.")] = None,
    kafka: Annotated[str | None, typer.Option(help="Bootstrap servers; else as in the settings.")] = None,
    json: Json = False,
) -> None:
    """Send the rows of a file to Kafka as JSON, keyed."""
    options = {"module": module, "timestamp": timestamp, "partitions": partitions, "kafka": kafka, "json": json}
    _run("produce", topic=topic, file=file, key=key, **options)


@app.command(epilog="Example: onceflow worker -m features --mode replay --until-end")
def worker(
    module: Module,
    mode: Annotated[
        Literal["live", "replay"] | None, typer.Option(help="Whose time it is: the clock's or the stream's.")
    ] = None,
    until_end: Annotated[bool, typer.Option("--until-end", help="Stop at the present end of the topics.")] = False,
) -> None:
    """Fold events into features, and predict."""
    _run("worker", module=module, mode=mode, until_end=until_end)


@app.command(epilog="Example: onceflow learn -m features")
def learn(module: Module) -> None:
    """Join labels to predictions, and keep the models learning."""
    _run("learn", module=module)


@app.command(epilog="Example: onceflow serve -m features --port 6566")
def serve(
    module: Module,
    host: Annotated[str | None, typer.Option(help="Address to listen on; else as in the settings.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Else as in the settings.")] = None,
) -> None:
    """Serve features, predictions and the dashboard over HTTP."""
    _run("serve", module=module, host=host, port=port)


@app.command(epilog="Example: onceflow run -m features")
def run(module: Module) -> None:
    """Start worker, learner and server together, until interrupted."""
    _run("run", module=module)


@app.command(epilog="Example: onceflow get card_activity c42 -m features --as-of 2024-05-01T12:00:00Z")
def get(
    view: Annotated[str, typer.Argument(help="The view's name.")],
    keys: Annotated[list[str], typer.Argument(help="The entity: one value per key column.")],
    module: Module,
    as_of: Annotated[str | None, typer.Option(help="A time, as ISO 8601 or ms since the epoch; else now.")] = None,
    json: Json = False,
) -> None:
    """Print an entity's online features."""
    _run("get", view=view, keys=keys, module=module, as_of=as_of, json=json)


@app.command(epilog="Example: onceflow status -m features --sizes")
def status(
    module: Module,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Count states and their bytes too: walks through all of Redis.")
    ] = False,
    json: Json = False,
) -> None:
    """Show how far each view has come, its lag, and what was set aside."""
    _run("status", module=module, sizes=sizes, json=json)


@app.command(epilog="Example: onceflow forget card c42 -m features --yes")
def forget(
    *,
    entity: Annotated[str, typer.Argument(help="The entity's name, as the definitions have it.")],
    keys: Annotated[list[str], typer.Argument(help="Which one: a value per key column.")],
    module: Module,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; else only show what would be sent.")] = False,
    json: Json = False,
) -> None:
    """Erase an entity from Redis, the mirror and the archive."""
    _run("forget", entity=entity, keys=keys, module=module, yes=yes, json=json)


@app.command(epilog="Example: onceflow dlq show transactions --error type --limit 5")
def dlq(
    *,
    action: Annotated[
        Literal["list", "show", "replay"], typer.Argument(help="Count them by reason, show some, or send them back.")
    ],
    topic: Annotated[str, typer.Argument(help="The source topic.")],
    error: Annotated[str | None, typer.Option(help="Only records refused for this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most records to show.")] = 10,
    again: Annotated[bool, typer.Option("--again", help="Send back also what was sent back before.")] = False,
    json: Json = False,
) -> None:
    """Look at the records that were refused, or send them back."""
    _run("dlq", action=action, topic=topic, error=error, limit=limit, again=again, json=json)


@app.command(epilog="Example: onceflow backfill -m features --view card_activity --events events/ --out features/")
def backfill(
    *,
    module: Module,
    view: Annotated[str, typer.Option(help="The view's name.")],
    events: Annotated[Path, typer.Option(help="Parquet file or directory of the source's events.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory for the features; with --online it may be left out.")
    ] = None,
    at: Annotated[
        Path | None, typer.Option(help="Parquet or CSV with entities and times; else at every event.")
    ] = None,
    mode: Annotated[
        Literal["event_time", "arrival"], typer.Option(help="What was true, or what could have been known.")
    ] = "event_time",
    online: Annotated[
        bool, typer.Option("--online", help="Write states to Redis too, for the stream to go on.")
    ] = False,
    engine: Annotated[Literal["local", "spark"], typer.Option(help="Where it runs.")] = "local",
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run stopped.")] = False,
    json: Json = False,
) -> None:
    """Compute features from history, as the stream does."""
    options = {"at": at, "mode": mode, "online": online, "engine": engine, "resume": resume, "json": json}
    _run("backfill", module=module, view=view, events=events, out=out, **options)


@app.command(epilog="Example: onceflow verify -m features --json")
def verify(module: Module, json: Json = False) -> None:
    """Replay the archive; compare with Redis and the mirror, bit for bit."""
    _run("verify", module=module, json=json)


@app.command(epilog="Example: onceflow bench stream --events 200000")
def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="engine, stream or start, all if none is named; or memory."),
    ] = None,
    events: Annotated[int | None, typer.Option(min=1, help="Events of each topic of stream; else two million.")] = None,
    long: Annotated[int | None, typer.Option(min=1, help="Watch a worker's memory over so many events.")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Measure other systems on the same events.")] = False,
) -> None:
    """Measure this machine against what one would use instead."""
    _run("bench", names=names or [], events=events, long=long, peers=peers)
