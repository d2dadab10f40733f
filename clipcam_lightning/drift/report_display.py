"""How a report shows itself: as HTML in a notebook, and in matplotlib."""

import math
import textwrap
from typing import TYPE_CHECKING

from clipcam_lightning.cam.display.gallery import describe_rest
from clipcam_lightning.cam.display.markup import clean_text
from clipcam_lightning.cam.display.plot import DETAILS, HEADING, make_plot, text_style, wrap_text
from clipcam_lightning.drift.probe_drift import ProbeDrift, format_drift

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from clipcam_lightning.drift.report import DriftReport

MAX_ROWS, MAX_BARS = 20, 40
WIDTH, NAME = 7.5, 2.2  # of the plot and of the name of a probe, in inches
FLAGGED, OTHERS = "#c1121f", "#7f8ea3"  # legible on white and on black
BADGE = "color:#fff;border-radius:3px;padding:1px 7px;font-weight:600"
COLUMNS = ("Probe", "Prompt", "Drift", "Drift / noise floor", "Similarity")


def report_html(report: "DriftReport") -> str:
    """Render the verdict and a table of the probes, flagged ones first; all text is escaped."""
    order = report.flagged_first
    columns = (*COLUMNS, "Flagged because") if report.flagged else COLUMNS
    color, verdict = (FLAGGED, "alarm") if report.alarm else ("#2d6a4f", "no alarm")
    message = clean_text(str(report).removeprefix("no alarm ").strip())
    head = "".join(f'<th style="text-align:left">{title}</th>' for title in columns)
    rows = "".join(_render_row(report.probes[i]) for i in order[:MAX_ROWS])
    rest = describe_rest(min(len(order), MAX_ROWS), len(order), "probe")
    return (
        f'<div style="line-height:1.4;text-align:left"><div><span style="{BADGE};background:{color}">{verdict}</span> '
        f"{message}</div><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div style="opacity:.75;font-size:90%">{rest}</div></div>'
    )


def plot_report(report: "DriftReport") -> "Figure":
    """Plot the drift of each probe as a bar, flagged ones first and red.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    order = report.flagged_first[:MAX_BARS]
    probes = [report.probes[i] for i in order]
    plot = make_plot(WIDTH, 1.4 + 0.28 * len(probes))
    axes = plot.subplots()
    colors = [FLAGGED if probe.flagged else OTHERS for probe in probes]
    bars = axes.barh(range(len(probes)), [probe.drift for probe in probes], color=colors)
    axes.bar_label(bars, [_format_drift(probe) for probe in probes], padding=3, fontsize="small")
    axes.set_yticks(
        range(len(probes)), [wrap_text(probe.name, DETAILS, NAME, 1) for probe in probes], **text_style(DETAILS)
    )
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, *(probe.drift for probe in probes)) * 1.1)
    rest = describe_rest(len(probes), len(report.probes), "probe")
    axes.set_xlabel("drift: 0 the same map, 1 an unrelated one" + (f" ({rest} not shown)" if rest else ""))
    axes.set_title(wrap_text(str(report), HEADING, WIDTH - NAME, 5), **text_style(HEADING))
    axes.spines[["top", "right"]].set_visible(False)
    return plot


def _render_row(probe: ProbeDrift) -> str:
    ratio = f"{probe.noise_ratio:.1f}" if math.isfinite(probe.noise_ratio) else ""
    before = probe.similarity - probe.similarity_change
    reason = f'<span style="{BADGE};background:{FLAGGED}">{clean_text(probe.reason)}</span>' if probe.flagged else ""
    cells = (
        clean_text(probe.name),
        f'<span dir="auto">{clean_text(textwrap.shorten(probe.prompt, 80, placeholder=" …"))}</span>',
        _format_drift(probe),
        ratio,
        f"{before:.3f} → {probe.similarity:.3f}" if math.isfinite(before) else "",
        reason,
    )
    row = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
    return f"<tr>{row}</tr>"


def _format_drift(probe: ProbeDrift) -> str:
    return format_drift(probe.drift) if probe.has_valid_baseline else "unknown"
