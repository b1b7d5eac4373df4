"""Words and layout of the report page; :mod:`vfm_inverse.report.page` fills them in."""

from __future__ import annotations

__all__ = ["PAGE", "TEXTS"]

TEXTS = {
    "ranks": (
        "Ranks of the truth",
        "For every simulated observation each quantity of the truth is ranked among its "
        "posterior draws. If truth and draws are exchangeable, all ranks are equally likely and "
        "the curve stays in the grey band; the band holds for all positions and all quantities "
        "together.",
        "A hill: draws too high; a valley: too low. Up, then down: draws too narrow; down, then "
        "up: too wide.",
    ),
    "coverage": (
        "Coverage of intervals",
        "An interval that states 90 % should hold the truth in 90 % of cases: central intervals, "
        "between two quantiles of the draws, and highest-density regions, which may be in several "
        "pieces. The grey band is the noise of so many simulations, at each level by itself.",
        "Below the line: overconfident, too narrow or misplaced. Above: too wide. Central "
        "intervals right and regions wrong: the shape is wrong, for example one mode for two.",
    ),
    "joint": (
        "Joint coverage",
        "All numbers of the field at once (TARP): how often the draws that are nearer to a "
        "reference point than the truth make up the stated share. Several sets of reference "
        "points are tried, as each sees other faults; the spread of their curves is the "
        "sensitivity to that choice.",
        "Away from the line although every quantity passes: the parts are right and the "
        "correlations are lost.",
    ),
    "maps": (
        "Where in the field",
        "Coverage of intervals and density regions, spread and bias over error, misfit of the "
        "ranks and CRPS of each element. White, or inside the grey band, is as it should be; "
        "scattered colour is noise and decides nothing.",
        "A connected patch of one colour: the posterior is wrong there.",
    ),
    "spread": (
        "Spread and error",
        "Each element of the field: the standard deviation that the draws state against the "
        "error that their mean turned out to have. Where the statement is right, points lie on "
        "the line.",
        "Above the line: more error than stated, overconfident. Below: too cautious. A flat "
        "cloud: the spread does not tell easy elements from hard ones.",
    ),
    "scores": (
        "Scores against the baseline",
        "Skill is the share of the baseline's score that is saved, on the same simulations, with "
        "two standard errors: 0 is no better, 100 % is perfect. Squares compare with the map "
        "before its training, a linear Gaussian analysis (kriging, the Wiener filter).",
        "At or below zero: the posterior tells no more than the baseline, however well it is "
        "calibrated; a square at zero says that the training added nothing.",
    ),
    "local": (
        "For which observations",
        "A classifier tries to tell draws from truths, given the observation; a small p-value "
        "says that it can, there. On the left the observations in their two leading directions.",
        "A cluster of vermilion: the posterior is wrong for observations of that kind.",
    ),
    "histogram": (
        "Rank histograms",
        "The ranks again in bins, worst quantity first. The grey band holds 99 % of the bins of "
        "uniform ranks.",
        "A slope: draws to one side; a bowl: too narrow; a dome: too wide.",
    ),
    "history": (
        "Training",
        "The energy score on held-out simulations, with that of the untrained map as a dashed "
        "line; terms of the loss and health figures with a running median.",
        "Scores that never fall below the line: training gained nothing. A term that still falls: "
        "train longer. A dispersion far above one: the adapter is collapsing.",
    ),
}
"""Title, what the picture means, how a fault looks in it."""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}: {{ counts }}</title>
<style>
:root { --ok: #0072B2; --bad: #D55E00; --mid: #A66F00;
  --ink: #222; --soft: #5b6670; --line: #dde3e8; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  color: var(--ink); max-width: 64rem; margin: 2rem auto 4rem; padding: 0 1.2rem; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .3rem; padding-top: .8rem;
  border-top: 1px solid var(--line); }
.verdict { border-left: .4rem solid var(--ok); background: #f2f7fb; padding: .8rem 1.1rem; }
.verdict.fail { border-color: var(--bad); background: #fdf3ec; }
.verdict strong { color: var(--ok); } .verdict.fail strong { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem;
  margin: 1.1rem 0; }
.tile { border: 1px solid var(--line); border-radius: .4rem; padding: .55rem .65rem; }
.tile strong { display: block; font-size: 1.08rem; line-height: 1.3; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile.bad strong { color: var(--bad); } .tile.ok strong { color: var(--ok); }
.tile span { color: var(--soft); font-size: .82rem; line-height: 1.35; display: block; }
p { margin: .4rem 0; } .soft { color: var(--soft); } em { font-style: normal; font-weight: 600; }
figure { margin: .8rem 0 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); margin: .5rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; color: var(--soft); }
table.settings td:first-child { white-space: nowrap; }
table.settings td:last-child { text-align: left; overflow-wrap: anywhere; }
table.remedies { min-width: 44rem; }
table.remedies th, table.remedies td { text-align: left; width: 25%; }
table.remedies td:first-child strong { color: var(--bad); display: block; }
table.grades { width: 100%; font-size: 1rem; }
table.grades td { text-align: left; padding: .45rem 1rem .45rem 0; }
table.grades td:first-child { width: 15rem; } table.grades td:first-child span { display: block;
  color: var(--soft); font-size: .82rem; line-height: 1.35; }
table.grades strong { color: var(--ok); white-space: nowrap; }
table.grades tr.borderline strong { color: var(--mid); }
table.grades tr.fail strong { color: var(--bad); }
dl { margin: .6rem 0; font-size: .9rem; } dt { font-weight: 600; float: left; clear: left;
  margin-right: .6rem; } dd { margin: 0 0 .2rem; }
tr.bad td:first-child { color: var(--bad); font-weight: 600; }
code { font-size: .95em; }
@media print { body { margin: 0; max-width: none; } figure, tr { break-inside: avoid; } }
</style></head><body>
<h1>{{ title }}</h1>
{% set untrained = training.startswith("The start was kept") %}
{% if untrained %}<div class="verdict"><p><strong>{{ training.partition(":")[0] }}:</strong>
{{ training.partition(": ")[2] }}.</p></div>{% endif %}
<h2>What may be trusted</h2>
<p>{{ counts }}. <em>pass</em>: no test of the aspect fails. <em>borderline</em>: one fails, and
the difference is too small to matter. <em>fail</em>: one fails, and it matters: an offset over 0.1
posterior standard deviations, intervals that hold 2.5 points more or less than they state, draws
rougher or smoother by 5 %.</p>
<table class="grades"><tbody>
{% for one in grades %}<tr class="{{ one.grade }}"><td>{{ one.aspect }}
<span>{{ about[one.aspect] }}</span></td><td><strong>{{ one.grade }}</strong></td>
<td>{{ one.size }}</td></tr>
{% endfor %}</tbody></table>
{% if against %}<p>The CRPS is {{ against }}.</p>{% endif %}
{% if training and not untrained %}<p><em>Training.</em> {{ training }}.</p>{% endif %}
{% if prior %}<p><em>Prior.</em> {{ prior }}.</p>{% endif %}
<h2>Strict verdict</h2>
<div class="verdict {{ verdict }}"><p><strong>{{ headline }}</strong> {{ reason }}.</p></div>
<div class="tiles">
{% for tile in tiles %}<div class="tile {{ tile.state }}"><strong>{{ tile.figure }}</strong>
<span>{{ tile.meaning }}</span></div>
{% endfor %}</div>
<p class="soft">{{ scope }}</p>
{% if remedies %}
<h2>What to do</h2>
<p>{{ advice }}</p>
<p>Three ways, the quickest first. The <em>ladder</em> mends the draws of the observation at hand
and needs its likelihood: <code>vfm-inverse correct RUN OBS.nc</code>, or
<code>correction.auto(vfm, y)</code>, climbs <code>psis</code>, <code>smc</code>, <code>mcmc</code>
until the diagnostics hold. <em>Training</em> and a <em>richer family</em> mend the map; check it
again afterwards.</p>
<div class="wide"><table class="remedies"><thead><tr><th>what is wrong</th><th>the ladder</th>
<th>more training</th><th>a richer family</th></tr></thead><tbody>
{% for one in remedies %}<tr><td><strong>{{ one.fault }}</strong>{{ one.evidence }}</td>
<td>{{ one.ladder }}</td><td>{{ one.train }}</td><td>{{ one.family }}</td></tr>
{% endfor %}</tbody></table></div>
{% endif %}
{% for figure in figures %}
<h2>{{ figure.title }}</h2>
{% if figure.meaning %}<p>{{ figure.meaning }}</p>{% endif %}
<figure><img alt="{{ figure.title }}" width="{{ figure.width }}"
 src="data:image/png;base64,{{ figure.png }}">
{% if figure.fault %}<figcaption><em>How a fault looks.</em> {{ figure.fault }}</figcaption>
{% endif %}</figure>
{% endfor %}
<h2>Quantities</h2>
<p>{{ shown }} p is exact for the simultaneous test of the ranks, after correction for all
{{ tests }} tests; offset is how many posterior standard deviations the draws sit too high
(0 is right), width is their standard deviation over the one the truth needs (1 is right).</p>
<dl>{% for name, meaning in definitions %}<dt>{{ name }}</dt><dd>{{ meaning }}</dd>
{% endfor %}</dl>
<div class="wide"><table>
<thead><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr{% if row.bad %} class="bad"{% endif %}>
{% for cell in row.cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
<h2>Scores</h2>
{% if scores %}<p>Means over the simulations with their standard errors; smaller is better.
{{ baseline }}</p>
<div class="wide"><table>
<thead><tr>{% for name in score_columns %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in scores %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
<table class="settings"><tbody>{% for name, value in summary %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table>
{% if card %}
<h2>Calibration card</h2>
<p>What the checkpoint says of this check, and every file of draws made with it. A map with other
weights is uncertified; an observation outside the valid range is warned of.</p>
<table class="settings"><tbody>{% for name, value in card %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table>
{% endif %}
<h2>Settings</h2>
<table class="settings"><tbody>{% for name, value in settings %}
<tr><td>{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}</tbody></table>
</body></html>
"""
