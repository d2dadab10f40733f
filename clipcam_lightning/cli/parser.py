"""Parse the command line. This module imports nothing heavy, so that help and usage errors come at once."""

import re
import sys
from argparse import ArgumentError, ArgumentTypeError, BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from upath import UPath

from clipcam_lightning.cam.arguments import suggest
from clipcam_lightning.cam.urls import PathLike
from clipcam_lightning.drift.rule import DEFAULT_RATE
from clipcam_lightning.errors import ConfigError
from clipcam_lightning.storage.paths import as_path

DESCRIPTION = """\
Show where a CLIP looks, and raise an alarm when the background predicts the prompt.
Files and folders may be in a store of fsspec: s3://bucket/baseline.safetensors.

Exit code: 0 no alarm, 1 alarm, 2 the input cannot be used,
70 a bug in the package, 130 interrupted.
"""

EXPLAIN = """\
Map which regions of each image raise its similarity to each prompt, and draw one sheet per image.

example:
  clipcam explain cat.jpg photos/ --prompt "a cat" --prompt "a dog" \\
      --model ViT-B-32 --pretrained laion2b_s34b_b79k --out maps
"""

SNAPSHOT = """\
Write the maps of a probe set, for clipcam compare or as a baseline of clipcam check and of the callback.

example:
  clipcam snapshot --probes probes/ --out before.safetensors \\
      --checkpoint last.ckpt --config lightning_logs/version_0/config.yaml
"""

COMPARE = """\
Measure how far each map of a snapshot moved from that of a baseline. Needs no model.

example:
  clipcam compare before.safetensors after.safetensors --html drift.html
"""

CHECK = """\
Map a probe set and compare it with a baseline. The exit code is 1 on an alarm.

example:
  clipcam check --probes probes/ --baseline baseline.safetensors \\
      --checkpoint last.ckpt --class-path my_project.model.LitClip --init-args '{learning_rate: 1e-5}'
"""

RANK = """\
Measure which CAM method is to be trusted on a model, with a probe set of your own; masks are not needed.

example:
  clipcam rank --probes probes/ --model ViT-B-32 --pretrained laion2b_s34b_b79k --html methods.html
"""

REPORT = """\
Write one HTML page of a whole training from the files of its run, or compare two runs. Needs no model.
RUN is the folder of a run, a log directory that contains one, or a URL.
Fails (exit code 1) if a run ends with an alarm.

examples:
  clipcam report lightning_logs/version_3
  clipcam report lightning_logs/version_3 --gif cat.gif --probe cat
  clipcam report lightning_logs/version_2 lightning_logs/version_3 --html comparison.html
"""

METHODS = """\
List the CAM methods: which towers each fits, what a map costs, and its paper.

example:
  clipcam methods | grep occlusion
"""

DEMO = """\
Fine-tune a small CLIP on images whose stamp gives the answer away, and see its attention move to the stamp.
Needs no data and no network; takes less than a minute on two CPU cores.

example:
  clipcam demo --out clipcam_demo
"""

# Positional arguments by the name that the parser gives them, as --help shows them.
POSITIONAL = {"explain.images": "IMAGE", "compare.baseline": "A", "compare.snapshot": "B", "report.run": "RUN"}


class UsageError(ConfigError):
    """The command line does not parse."""


def parse_arguments(arguments: Sequence[str] | None) -> tuple[str, Namespace]:
    """Parse the command line.

    Args:
        arguments: ``None`` for those of the process.

    Returns:
        The command and its options.

    Raises:
        UsageError: the message says what is wrong.
        SystemExit: after help or the version was printed.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    commands = _make_commands()
    try:
        options = _make_parser(commands).parse_args(arguments)
    except ArgumentError as error:
        message = _reword_message(str(error))
        command = commands.get(arguments[0]) if arguments else None
        raise UsageError(f"{message}{_suggest_for(message, command)}") from error
    return options.command, options[options.command]


def _make_parser(commands: Mapping[str, ArgumentParser]) -> ArgumentParser:
    parser = _make_empty_parser("clipcam", DESCRIPTION)
    number = version("clipcam-lightning")
    parser.add_argument("--version", action="version", version=f"clipcam {number}", help="print it and exit")
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND", title="commands", description=None)
    for name, command in commands.items():
        subcommands.add_subcommand(name, command, help=str(command.description).partition("\n")[0])
        command.prog = f"clipcam {name}"  # without the "[options]" that jsonargparse inserts
    return parser


def _make_commands() -> dict[str, ArgumentParser]:
    commands = {}
    for name, add_options, description in (
        ("explain", _add_explain_options, EXPLAIN),
        ("snapshot", _add_snapshot_options, SNAPSHOT),
        ("compare", _add_compare_options, COMPARE),
        ("check", _add_check_options, CHECK),
        ("rank", _add_rank_options, RANK),
        ("report", _add_run_report_options, REPORT),
        ("methods", lambda _command: None, METHODS),
        ("demo", _add_demo_options, DEMO),
    ):
        commands[name] = _make_empty_parser(f"clipcam {name}", description)
        add_options(commands[name])
    return commands


def _make_empty_parser(name: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        prog=name, description=description, formatter_class=RawDescriptionHelpFormatter, exit_on_error=False
    )


def _add_explain_options(command: ArgumentParser) -> None:
    command.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of images, or pattern such as 'photos/**/*.jpg'"
    )
    command.add_argument("--prompt", action="append", required=True, metavar="TEXT", help="text to map; repeatable")
    command.add_argument("--out", type=_read_path, required=True, metavar="DIR", help="folder for the sheets")
    _add_map_options(command)
    _add_model_options(command)


def _add_snapshot_options(command: ArgumentParser) -> None:
    _add_probes(command)
    command.add_argument("--out", type=_read_path, required=True, metavar="FILE", help="snapshot to write")
    _add_map_options(command)
    _add_model_options(command)


def _add_compare_options(command: ArgumentParser) -> None:
    command.add_argument("baseline", type=_read_path, metavar="A", help="snapshot to compare with")
    command.add_argument("snapshot", type=_read_path, metavar="B", help="later snapshot of the same probes")
    _add_report_options(command)


def _add_check_options(command: ArgumentParser) -> None:
    _add_probes(command)
    command.add_argument("--baseline", type=_read_path, required=True, metavar="FILE", help="snapshot to compare with")
    command.add_argument(
        "--update-baseline", action="store_true", help="replace the baseline instead of comparing with it"
    )
    _add_report_options(command)
    _add_map_options(command, as_in_baseline=True)
    _add_model_options(command)


def _add_rank_options(command: ArgumentParser) -> None:
    _add_probes(command)
    command.add_argument("--methods", nargs="+", metavar="NAME", help="CAM methods (default: all that fit, and auto)")
    command.add_argument(
        "--budget",
        type=int,
        metavar="N",
        help="leave out methods whose map costs more forwards; a backward counts as two (default: 300)",
    )
    command.add_argument("--batch-size", type=int, metavar="N", help="images per pass; bounds memory (default: 32)")
    command.add_argument("--json", type=_read_path, metavar="FILE", help="write all metrics as JSON")
    command.add_argument(
        "--html", type=_read_path, metavar="FILE", help="write a page with the maps of all methods as HTML"
    )
    _add_model_options(command)


def _add_run_report_options(command: ArgumentParser) -> None:
    command.add_argument(
        "run", type=_read_path, metavar="RUN", help="folder or URL of the run, or of its log directory"
    )
    command.add_argument("other", type=_read_path, nargs="?", metavar="RUN", help="another run to compare it with")
    command.add_argument(
        "--html",
        type=_read_path,
        metavar="FILE",
        help="page to write (default, if no other file is named: training.html in the folder of the run, or in the "
        "working directory for a remote run; comparison.html there for two runs)",
    )
    command.add_argument("--json", type=_read_path, metavar="FILE", help="write all metrics as JSON")
    command.add_argument("--gif", type=_read_path, metavar="FILE", help="write the maps of a probe as an animation")
    command.add_argument("--mp4", type=_read_path, metavar="FILE", help="write the same as a video; needs PyAV")
    command.add_argument(
        "--probe", metavar="NAME", help="probe to animate and to show first (default: the first flagged one, by drift)"
    )


def _add_demo_options(command: ArgumentParser) -> None:
    command.add_argument(
        "--out",
        type=_read_path,
        default=as_path("clipcam_demo"),
        metavar="DIR",
        help="folder for the logs (default: %(default)s)",
    )


def _add_probes(command: ArgumentParser) -> None:
    command.add_argument(
        "--probes",
        type=_read_path,
        required=True,
        metavar="DIR_OR_FILE",
        help="folder with images and a probes.csv (image,prompt[,name,mask,box]), or a saved probe set",
    )


def _add_report_options(command: ArgumentParser) -> None:
    group = command.add_argument_group("report")
    group.add_argument(
        "--max-drift",
        type=float,
        metavar="X",
        help="fail if one map drifts by more: 0 the same, 1 unrelated, 2 inverted (default: the rule described under "
        "'Alarms and what they miss' in the docs)",
    )
    group.add_argument(
        "--false-alarm-rate",
        type=float,
        default=DEFAULT_RATE,
        metavar="X",
        help="share of harmless evaluations in which the rule is meant to raise a false alarm, above 0 and at most 0.2 "
        "(default: %(default)s)",
    )
    group.add_argument("--json", type=_read_path, metavar="FILE", help="write all metrics as JSON")
    group.add_argument("--html", type=_read_path, metavar="FILE", help="write a page with the maps and metrics as HTML")


def _add_map_options(command: ArgumentParser, as_in_baseline: bool = False) -> None:
    """Add the fields of MapSettings. No option has a default, so that a command sees which ones are set."""

    def default(value: str) -> str:
        return f"(default: {'as in the baseline' if as_in_baseline else value})"

    group = command.add_argument_group("maps")
    group.add_argument("--method", metavar="NAME", help=f"CAM method, or dotted name of a function {default('auto')}")
    group.add_argument(
        "--layers",
        type=int | str,
        nargs="+",
        metavar="LAYER",
        help=f"names or indices, such as -2 -1, of the layers to map {default('those of the method')}",
    )
    group.add_argument(
        "--target",
        type=dict[str, Any] | str,
        metavar="NAME_OR_YAML",
        help="similarity, contrast, logsoftmax, or YAML such as "
        f"'{{class_path: clipcam_lightning.Contrast, init_args: {{negatives: [a dog]}}}}' {default('similarity')}",
    )
    group.add_argument(
        "--score-scale",
        type=float,
        metavar="X",
        help=f"factor on the cosine, for methods that are not linear in it {default('that of the method')}",
    )
    group.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="X",
        help=f"factors by which the image is enlarged; the maps are averaged {default('1')}",
    )
    group.add_argument(
        "--flip",
        action=BooleanOptionalAction,
        help=f"average each map with that of the mirrored image {default('no')}",
    )
    group.add_argument(
        "--shift",
        action=BooleanOptionalAction,
        help=f"average each map with that of the image shifted by half a cell {default('no')}",
    )
    group.add_argument(
        "--fuse",
        choices=("mean", "max", "product"),
        help=f"how the maps of several layers are combined {default('mean; auto: its own')}",
    )
    group.add_argument("--batch-size", type=int, metavar="N", help="images per pass; bounds memory (default: 32)")
    group.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help=f"in which the image tower computes; bfloat16 is faster on many GPUs {default('float32')}",
    )


def _add_model_options(command: ArgumentParser) -> None:
    group = command.add_argument_group(
        "model", "--model with --pretrained or --checkpoint; or --checkpoint with --class-path or --config"
    )
    group.add_argument("--model", metavar="NAME", help="architecture of open_clip, such as ViT-B-32")
    group.add_argument("--pretrained", metavar="TAG", help="published weights of open_clip, such as openai")
    group.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="side, or height and width, for which --model is built (default: its own)",
    )
    group.add_argument(
        "--checkpoint",
        type=_read_path,
        metavar="FILE",
        help="weights of Lightning or open_clip, a state dict or safetensors",
    )
    group.add_argument("--class-path", metavar="NAME", help="LightningModule, such as my_project.model.LitClip")
    group.add_argument("--init-args", type=dict[str, Any], metavar="YAML", help="its arguments, as YAML or JSON")
    group.add_argument("--config", type=_read_path, metavar="FILE", help="config.yaml that LightningCLI wrote")
    group.add_argument(
        "--clip", metavar="NAME", help="dotted name of the CLIP inside; needed only if there are several"
    )
    group.add_argument(
        "--encode-image",
        metavar="NAME",
        help="method of the class that embeds images, where no CLIP is found; with --encode-text",
    )
    group.add_argument("--encode-text", metavar="NAME", help="the same for texts")
    group.add_argument("--device", choices=("cpu", "cuda", "mps"), default="cpu", help="(default: %(default)s)")


def _read_path(value: PathLike) -> UPath:
    """Make a path of an option, as text or, because jsonargparse parses twice, as a path.

    Raises:
        ArgumentTypeError: the URL cannot be opened; of another error the parser would not print the message.
    """
    try:
        return as_path(value)
    except ConfigError as error:
        raise ArgumentTypeError(str(error).removesuffix(".")) from error


def _reword_message(message: str) -> str:
    """Put a message of the parser on one line, with options as they are typed and types in plain words."""
    message = " ".join(message.split())
    message = re.sub(r'Parser key "(\w+)"', lambda key: _as_typed(key[1]), message)
    if "arguments are required" in message:
        message = re.sub(r"\w+\.\w+", lambda key: _as_typed(key[0]), message)
    for kind, name in (("int", "whole number"), ("float", "number"), ("dict", "mapping")):
        message = message.replace(f"<class '{kind}'>", name)
    return message


def _suggest_for(message: str, command: ArgumentParser | None) -> str:
    """Suggest what a wrong command, choice or option of ``command`` was probably meant to be."""
    hint = ""
    if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
        hint = suggest(choice[1], re.findall(r"[\w-]+", choice[2]))
    elif command and (option := re.search(r"unrecognized arguments: (--[\w-]+)", message)):
        hint = suggest(option[1], re.findall(r"--[\w-]+", command.format_help()))
    return f".{hint}" if hint else ""


def _as_typed(key: str) -> str:
    return POSITIONAL.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"
