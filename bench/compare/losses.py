"""Where another server was better than entrepot, by the medians."""

from statistics import median

import misses
import rates
from harness.page import paired, pick, spread, table, unique


def section(records):
    rows = [*of_rates(records), *of_misses(records)]
    if not rows:
        return ""
    return (
        "## Where entrepot is behind\n\n"
        f"{table(['what', 'who is ahead', 'entrepot over it'], rows)}\n"
        "Rates and times within a round; every server of the run that was better in the median.\n"
    )


def of_rates(records):
    records = pick(records, scenario="rates")
    for work in rates.works(records):
        own = rates.of_work(records, work, "entrepot")
        for server in others(records):
            ratios = paired(own, rates.of_work(records, work, server), rates.faster)
            if ratios and median(ratios) < 1:
                row, connections, client = work
                yield [f"{row}, c={connections}, {client}: rate", server, spread(ratios, "{:.2f}")]


def of_misses(records):
    for scenario in misses.SCENARIOS:
        mine = pick(records, scenario=scenario)
        own = pick(mine, server="entrepot")
        for server in others(mine):
            for what, of in [("time", seconds), ("first byte", first_byte)]:
                longer = lambda one, other, of=of: of(one) / of(other)
                ratios = paired(own, pick(mine, server=server), longer)
                if ratios and median(ratios) > 1:
                    yield [f"{scenario}: {what}", server, spread(ratios, "{:.2f}")]


def seconds(record):
    return record["seconds"]


def first_byte(record):
    return record["first_byte_ms"]["p50"]


def others(records):
    names = unique(record["server"] for record in records)
    return [name for name in names if name not in ("entrepot", misses.DIRECT)]
