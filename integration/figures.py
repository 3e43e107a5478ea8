# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes tables, Markdown and a chart of what bench.py has measured."""

import re
import statistics

from ways import LOADS, WAYS

MARKS = "<!-- figures: %s -->", "<!-- end of figures: %s -->"
COLOURS = {"forward": "#9aa5b1", "dnat": "#52606d", "kernel": "#2f855a", "rewrite": "#2b6cb0", "mark": "#6b46c1", "c": "#b7791f",
           "c-mark": "#d69e2e", "textbook": "#c05621", "python": "#9b2c2c"}


def number(value):
    if value is None:
        return "–"
    return "%.0f" % value if abs(value) >= 1000 else "%.1f" % value if abs(value) >= 10 else "%.2f" % value


def medians(samples, load, key):
    values = [each[key] for each in samples[load] if each.get(key) is not None]
    return statistics.median(values) if values else None


def ratios(samples, base, load, key):
    """The ratios of each round, sorted."""
    return sorted(a[key] / b[key] for a, b in zip(samples[load], base[load]) if a.get(key) and b.get(key))


def ratio(values):
    """Median and quartiles in one cell."""
    if not values:
        return "–"
    if len(values) < 4:
        return number(statistics.median(values))
    low, middle, high = statistics.quantiles(values, n=4)
    return "%s (%s–%s)" % (number(middle), number(low), number(high))


def tables(datapath):
    """(title, rows) of everything that is shown of the packet path; the first row is the heading."""
    samples = datapath["samples"]
    loads = [name for name in LOADS if any(name in each for each in samples.values())]
    heading = ["way"] + [LOADS[load].title for load in loads]

    def table(title, cell, ways=samples):
        return title, [heading] + [[way] + [cell(way, load) for load in loads] for way in ways]

    def unit(load):
        return 1 if LOADS[load].unit == "GB" else 1e6

    found = []
    for base in ("dnat", "c"):
        if base in samples:
            found.append(table("Cost, ratio to `%s` (median and quartiles of the rounds; lower is better)" % base,
                               lambda way, load: ratio(ratios(samples[way], samples[base], load, "cost"))))
    found.append(table("Cost: CPU s/GB, or µs an operation", lambda way, load: number(
        (medians(samples[way], load, "cost") or 0) * unit(load))))
    found.append(table("Throughput: Gb/s, or operations a second", lambda way, load: number(
        medians(samples[way], load, "rate"))))
    for base in ("dnat", "c"):
        if base in samples:
            found.append(table("Throughput, ratio to `%s`" % base, lambda way, load: ratio(
                ratios(samples[way], samples[base], load, "rate"))))
    carried = [way for way in samples if any(medians(samples[way], load, "daemon") is not None for load in loads)]
    found.append(table("CPU time of the daemon alone: s/GB, or µs an operation", lambda way, load: number(
        (medians(samples[way], load, "daemon") or 0) * unit(load)), carried))
    found.append(table("Packets through its queue, in a sample", lambda way, load: number(
        medians(samples[way], load, "packets")), carried))
    calls = datapath["calls"]
    found.append(table("System calls a packet", lambda way, load: number(calls[way].get(load)),
                       [way for way in calls if calls[way]]))
    found.append(table("Round trip of ping-pong, median, µs", lambda way, load: number(medians(samples[way], load, "p50"))))
    return found


def integrity(samples):
    """(heading, rows): what the kernels of client and host have counted, over all samples of a way."""
    names = list(next(iter(next(iter(samples.values())).values()))[0]["integrity"])
    rows = [["way"] + names + ["dropped by the queue"]]
    for way, loads in samples.items():
        every = [each for taken in loads.values() for each in taken]
        rows.append([way] + ["%d" % sum(each["integrity"][name] for each in every) for name in names]
                    + ["%d" % sum(each["dropped"] for each in every)])
    return rows


def integrity_failures(result):
    """Sentences about checksum errors; reordering is shown, and judged by the reader beside the plain way's."""
    samples = result.get("datapath", {}).get("samples", {})
    wrong = []
    for way, loads in samples.items():
        errors = sum(each["integrity"]["InCsumErrors"] for taken in loads.values() for each in taken)
        if errors:
            wrong.append("%d checksum errors by way of %s" % (errors, way))
    return wrong


def every_table(result):
    found = []
    if "datapath" in result:
        found += tables(result["datapath"])
        found.append(("Integrity: sums over all samples", integrity(result["datapath"]["samples"])))
    if "control" in result:
        found += [(each["title"], each["rows"]) for each in result["control"]["tables"]]
    return found


def headline(result):
    machine = result["machine"]
    return "%s; %d cores, %s, %s, Linux %s; commit %s; %d rounds of %g s, offload %s" % (
        result["date"], machine["cores"], machine["processor"], machine["memory"], machine["kernel"], result["commit"],
        result["rounds"], result["seconds"], result["offload"])


def text(result):
    lines = [headline(result)]
    for title, rows in every_table(result):
        widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
        lines += ["", title] + ["  ".join(str(cell).rjust(width) if column else str(cell).ljust(width)
                                          for column, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(lines)


def markdown(result):
    lines = ["Measured %s." % headline(result)]
    for name, reason in result.get("datapath", {}).get("skipped", {}).items():
        lines.append("Skipped: %s, as %s." % (name, reason))
    for title, rows in every_table(result):
        lines += ["", "**%s**" % title, "", "| " + " | ".join(map(str, rows[0])) + " |", "|---" * len(rows[0]) + "|"]
        lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows[1:]]
    return "\n".join(lines)


def insert(result, path):
    """Put the tables between the marks of a document: those of the packet path by offload, those of the control plane."""
    with open(path) as file:
        document = file.read()
    for part, name in (("datapath", "offload " + result["offload"]), ("control", "control")):
        if part not in result:
            continue
        begin, end = (mark % name for mark in MARKS)
        body = markdown({key: value for key, value in result.items() if key not in ("datapath", "control") or key == part})
        document, count = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: "%s\n%s\n%s" % (begin, body, end),
                                  document, flags=re.DOTALL)
        if not count:
            raise SystemExit("%s has no marks for %s" % (path, name))
    with open(path, "w") as file:
        file.write(document)


def chart(result):
    """Bars: cost against the kernel's DNAT, by load and way; cut where the slow ways would make the others vanish."""
    samples = result["datapath"]["samples"]
    loads = [name for name in LOADS if name in next(iter(samples.values()))]
    ways = [way for way in WAYS if way in samples and way != "dnat"]
    limit, bar, gap, left, top, height = 3.0, 14, 22, 60, 90, 260
    group = bar * len(ways) + gap
    width = left + group * len(loads) + 20
    y = lambda value: top + height - height * min(value, limit) / limit
    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">' % (
        width, top + height + 60), '<rect width="100%" height="100%" fill="white"/>',
        '<text x="%d" y="20" font-size="15">CPU cost per unit of work, ratio to the kernel\'s DNAT (lower is better)</text>'
        % left]
    for index, way in enumerate(ways):
        x = left + index * ((width - left) // len(ways))
        parts.append('<rect x="%d" y="34" width="11" height="11" fill="%s"/><text x="%d" y="44">%s</text>' % (
            x, COLOURS[way], x + 15, way))
    for step in range(int(limit * 2) + 1):
        value = step / 2
        parts.append('<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/><text x="%d" y="%.1f" text-anchor="end">%.1f</text>'
                     % (left, width - 10, y(value), y(value), "#52606d" if value == 1 else "#e4e7eb", left - 6, y(value) + 4,
                        value))
    for column, load in enumerate(loads):
        x = left + column * group + gap / 2
        for index, way in enumerate(ways):
            values = ratios(samples[way], samples["dnat"], load, "cost")
            if not values:
                continue
            value = statistics.median(values)
            parts.append('<rect x="%.1f" y="%.1f" width="%d" height="%.1f" fill="%s"><title>%s, %s: %.2f</title></rect>' % (
                x + index * bar, y(value), bar - 2, top + height - y(value), COLOURS[way], way, LOADS[load].title, value))
            if value > limit:
                parts.append('<text x="%.1f" y="%.1f" transform="rotate(-90 %.1f %.1f)">%.0f</text>' % (
                    x + index * bar + 10, top - 4, x + index * bar + 10, top - 4, value))
        words = LOADS[load].title.split(", ")
        for line, word in enumerate(words):
            parts.append('<text x="%.1f" y="%d" text-anchor="middle">%s</text>' % (
                x + (group - gap) / 2, top + height + 18 + 14 * line, word))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"
