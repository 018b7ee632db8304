"""The commands: each a few lines that call the library. Only here is anything printed or exited.

Nothing but click and the standard library is imported until a command runs.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from convkit import __version__
from convkit.cli_bench import bench
from convkit.cli_options import common, model_options, recipe_from, settings_from, target_options

if TYPE_CHECKING:
    from convkit.recipe import Recipe

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_REPORT = "Please report it on the issue tracker, with the lines above and the command you typed."


class _Commands(click.Group):
    """A group that offers the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            from convkit.errors import UnknownNameError

            raise UnknownNameError("command", args[0], self.commands) from None


@click.group(cls=_Commands, commands=[bench], context_settings=_SETTINGS)
@click.version_option(__version__, prog_name="convkit")
def cli() -> None:
    """Convert trained models between formats and precisions, proven and measured.

    \b
    convkit convert model/ --to onnx --fp16
    convkit inspect model.onnx
    convkit verify model.pt2 model.onnx
    """


@cli.command()
@click.argument("model")
@target_options
@model_options
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@common
def convert(dry_run: bool, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Convert MODEL (a path, or package.module:factory) and verify the result.

    \b
    convkit convert model/ --to onnx --fp16
    convkit convert my.net:build --weights net.pth --input "x=float32[batch,3,32,32]" --to onnx
    """
    recipe = recipe_from(options)
    if dry_run:
        _show_plan(recipe, as_json)
    else:
        _run(recipe, as_json, quiet, verbose)


@cli.command()
@click.argument("model")
@target_options
@model_options
@common
def plan(as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Say what convert would do, step by step, and what each step loses.

    \b
    convkit plan model/ --to onnx --fp16
    """
    _show_plan(recipe_from(options), as_json)


def _show_plan(recipe: Recipe, as_json: bool) -> None:
    from convkit import console, pipeline

    job = pipeline.plan(recipe)
    missing = [need.install for need in job.route.missing()]
    size = None if missing else pipeline.predicted_bytes(job)
    if as_json:
        document = {
            "model": recipe.model,
            "format": job.source.format,
            "precision": str(job.source.precision),
            "route": [step.name for step in job.route.steps],
            "steps": job.route.explain(),
            "out": str(job.destination),
            "size_bytes": size,
            "missing": missing,
            "warnings": pipeline.warnings(job),
        }
        console.print_json(document)
    else:
        console.print_plan(job, missing, size, pipeline.warnings(job))


def _run(recipe: Recipe, as_json: bool, quiet: bool, verbose: bool) -> None:
    from convkit import console, pipeline

    with console.progressing(is_quiet=quiet or as_json, is_verbose=verbose) as listener:
        report = pipeline.run(recipe, listener)
    if as_json:
        console.print_json(report.to_json())
    elif quiet:
        click.echo(report.artifact.path)
    else:
        console.print_report(report)


@cli.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="FIELD=VALUE", help="Override a field.")
@click.option("--force", is_flag=True, help="Replace an existing result.")
@click.option("--dry-run", is_flag=True, help="Print the plan and stop.")
@common
def run(
    recipe: Path,
    settings: tuple[str, ...],
    force: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a recipe (YAML): the same conversion, written down.

    \b
    convkit run recipes/minilm-onnx-fp16.yaml --set out=build/model.onnx
    """
    from convkit import recipe as recipes

    read = recipes.read(recipe, settings_from(settings))
    read = read.model_copy(update={"force": True}) if force else read
    if dry_run:
        _show_plan(read, as_json)
    else:
        _run(read, as_json, quiet, verbose)


@cli.command()
@click.option("--graph", type=click.Choice(["mermaid", "dot", "svg"]), help="Draw the graph.")
@common
def formats(graph: str | None, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Show the converter graph: formats, steps, what works here, how to enable the rest.

    \b
    convkit formats --graph mermaid
    """
    from convkit import console, drawing
    from convkit.graph import discover

    found = discover()
    if graph and as_json:
        console.print_json({"language": graph, "drawing": drawing.draw(found, graph)})
    elif graph:
        click.echo(drawing.draw(found, graph))
    elif as_json:
        console.print_json(drawing.table(found))
    else:
        console.print_formats(found, drawing.table(found)["steps"])


@cli.command()
@click.argument("model")
@model_options
@common
def inspect(model: str, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> None:
    """Describe MODEL from its headers: format, precision, inputs, outputs, operators.

    \b
    convkit inspect model.onnx --json
    """
    from convkit import console, library

    artifact, described = library.inspect(model, **options)
    facts = library.inspection_json(artifact, described)
    if as_json:
        console.print_json(facts)
    else:
        console.print_description(artifact, described, facts)


@cli.command()
@click.argument("reference")
@click.argument("candidate")
@model_options
@click.option("--bisect", is_flag=True, help="Name the first tensor at which they part.")
@common
def verify(
    reference: str,
    candidate: str,
    bisect: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Check that two models, of any two formats, compute the same thing.

    \b
    convkit verify model/ model.onnx
    convkit verify model.onnx model.fp16.onnx --bisect
    """
    from convkit import console, library
    from convkit.errors import VerificationError

    with console.progressing(is_quiet=quiet or as_json, is_verbose=verbose) as listener:
        result = library.verify(reference, candidate, bisect=bisect, listener=listener, **options)
    if as_json:
        console.print_json(result.to_json())
    elif not quiet:
        console.print_checks(
            result.checks, f"{Path(candidate).name} against {Path(reference).name}"
        )
        for note in result.notes:
            click.echo(f"  {note}")
        if bisect:
            console.print_divergence(result.divergence)
    if not result.passed:
        raise SystemExit(VerificationError.exit_code)


@cli.command()
@click.argument("model")
@click.argument("prompt")
@click.option("-n", "--max-tokens", default=64, show_default=True, help="At most so many tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw from this much probability.")
@click.option("--seed", default=0, show_default=True, help="What is drawn follows from it.")
@click.option("--chat/--raw", default=False, help="Ask through the model's chat template.")
@click.option("--trust", is_flag=True, help="Open files that run code.")
@common
def generate(
    model: str,
    prompt: str,
    chat: bool,
    trust: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Continue PROMPT ("-" reads it from standard input) with the language model MODEL.

    \b
    convkit generate model/ "The capital of France is" -n 16
    convkit generate model.gguf "Name three rivers." --chat
    """
    from convkit import console, generation, library

    said = sys.stdin.read() if prompt == "-" else prompt
    with console.progressing(is_quiet=quiet or as_json, is_verbose=verbose) as listener:
        listener.stage("Opening the model")
        _, described = library.inspect(model, trust=trust)
        opened = library.load(model, trust=trust)
    with opened:
        kind = described.details.get("architecture") or ""
        runner = generation.require_language(opened, model, kind)
        pieces = generation.generate(runner, said, is_chat=chat, **options)
        if as_json:
            console.print_json(generation.document(said, pieces))
            return
        for piece in pieces:
            click.echo(piece.text, nl=False)
        click.echo()
    if not quiet:
        click.echo(piece.speed, err=True)


@cli.command()
@common
def doctor(as_json: bool, quiet: bool, verbose: bool) -> None:
    """Say what is installed, what hardware is here, what is wrong and the line that fixes it.

    \b
    convkit doctor
    """
    from dataclasses import asdict

    from convkit import console
    from convkit.doctor import examine

    findings = examine()
    if as_json:
        console.print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        console.print_findings(findings)
    if any(finding.state == "wrong" for finding in findings):
        raise SystemExit(4)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("convkit-demo"))
@common
def demo(folder: Path, as_json: bool, quiet: bool, verbose: bool) -> None:
    """Take the whole tour on a small real model.

    \b
    convkit demo
    """
    from convkit import console
    from convkit.demo import tour

    with console.progressing(is_quiet=quiet or as_json, is_verbose=verbose) as listener:
        reports = tour(folder, listener)
    if as_json:
        console.print_json([report.to_json() for report in reports])
    else:
        console.print_tour(reports)


def main() -> NoReturn:
    """The `convkit` command: runs it and turns every outcome into an exit code."""
    os.environ["CONVKIT_PROCESS"] = "1"
    # OpenMP's threads wait by spinning, and two runtimes that spin on busy processors take five to
    # ten times as long as one that waits. `bench` lets models wait as the user's shell says.
    os.environ["CONVKIT_USERS_OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    code = outcome(functools.partial(cli.main, prog_name="convkit", standalone_mode=False))
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader may be gone
            stream.flush()
    os._exit(code)  # frameworks take up to half a second to be torn down, for nothing


def outcome(command: Callable[[], Any]) -> int:
    """The exit code of a command that was run; failures are printed."""
    from convkit.errors import ConvkitError, ResourceError, UsageError

    _end_on_termination()
    try:
        command()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except ConvkitError as error:
        return _report(error)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.ClickException as error:
        return _report(UsageError(error.format_message(), hint="See:  convkit --help"))
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; nothing unfinished was left behind.", err=True)
        return 130
    except MemoryError:
        return _report(ResourceError("Memory ran out.", hint="Run it on a larger machine."))
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as bug:
        import traceback

        click.echo(traceback.format_exc(), err=True)
        return _report(
            ConvkitError(f"This is a bug in convkit {__version__}: {bug!r}", hint=_REPORT)
        )
    return 0


def _report(error: Any) -> int:
    from convkit import console

    if console.is_json_wanted():
        console.print_json(console.error_json(error))
    else:
        console.print_error(error)
    if error.__cause__ is not None and ("-v" in sys.argv or "--verbose" in sys.argv):
        import traceback

        traceback.print_exception(error.__cause__)
    return int(error.exit_code)


def _end_on_termination() -> None:
    """SIGTERM unwinds like Ctrl-C, so that workspaces are removed."""
    import signal

    def end(signum: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, end)


if __name__ == "__main__":
    main()
