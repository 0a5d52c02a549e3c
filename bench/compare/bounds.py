"""The numbers that are to be reached, and whether they were.

The median decides. A miss whose bound still lies within the spread of the rounds is undecided.
"""

from dataclasses import dataclass
from statistics import median

import misses
import pages
import rates
import records as by_records
from harness.page import pick, spread, table

ROUNDS_MIN = 10


@dataclass
class Verdict:
    what: str
    bound: str
    values: list
    form: str
    reached: bool
    undecided: bool

    def cells(self):
        said = "reached" if self.reached else "undecided" if self.undecided else "**missed**"
        rounds = len(self.values)
        few = f" (of {rounds} measured, not {ROUNDS_MIN})" if rounds < ROUNDS_MIN else ""
        return [self.what, self.bound, spread(self.values, self.form), said + few]


def at_least(what, values, bound, form="{:.2f}"):
    return judge(what, values, f"≥ {bound}", form, lambda value: value >= bound)


def at_most(what, values, bound, form="{:.2f}"):
    return judge(what, values, f"≤ {bound}", form, lambda value: value <= bound)


def judge(what, values, bound, form, holds):
    if not values:
        return None
    return Verdict(what, bound, values, form, holds(median(values)), any(map(holds, values)))


def section(records):
    verdicts = [verdict for part in PARTS for verdict in part(records) if verdict]
    if not verdicts:
        return ""
    rows = [verdict.cells() for verdict in verdicts]
    return (
        "## Bounds\n\n"
        f"{table(['what', 'bound', 'measured', ''], rows)}\n"
        "The median decides; a miss whose bound lies within the spread is undecided. The best nginx "
        "is the better of nginx over files and of the caching nginx with sendfile, round by round.\n"
    )


# Row, connections (`None`: all), against the better of these, how many times as fast.
RATES = [
    ("manifest", 16, ["nginx"], 1.2),
    ("tag", 16, ["nginx"], 1.2),
    ("64KiB", 16, ["nginx"], 1.3),
    ("1MiB", None, ["nginx", "nginx-sendfile"], 1.2),
    ("64MiB", None, ["nginx", "nginx-sendfile"], 1.0),
    ("1GiB", None, ["nginx", "nginx-sendfile"], 1.0),
]
# CPU for each GB of these rows is bounded as well.
CPU_ROWS = ["64MiB", "1GiB"]
STALL_MS = 40
RSS_MIB_MAX = 64


def of_rates(records):
    records = pick(records, scenario="rates")
    for row, connections, against, bound in RATES:
        for work in rates.works(records):
            if work[0] == row and connections in (None, work[1]):
                yield rate(records, work, against, bound)
                if row in CPU_ROWS:
                    cpu = best(records, work, against, rates.cheaper, max)
                    what = f"{named(work)}: CPU s/GB over that of {title(against)}"
                    yield at_most(what, cpu, 1.0)
    stalls = pick(records, row="64KiB", connections=1, server="entrepot")
    slowest = [run["latency_ms"]["p99"] for run in stalls]
    yield at_most("64KiB, c=1: p99 ms, no stall", slowest, STALL_MS)
    large = pick(records, row="64MiB", connections=256, server="entrepot")
    rss = [run["server_rss_mib"] for run in large]
    yield at_most("64MiB, c=256: RSS MiB", rss, RSS_MIB_MAX, "{:.0f}")


def rate(records, work, against, bound):
    own = rates.of_work(records, work, "entrepot")
    if not rates.is_client_busy(own):
        what = f"{named(work)}: rate over that of {title(against)}"
        return at_least(what, best(records, work, against, rates.faster, min), bound)
    # The client is what is slow: what the server could do shows in its CPU.
    cpu = best(records, work, against, rates.cheaper, max)
    what = f"{named(work)}: CPU of {title(against)} over ours (the client's core is full)"
    return at_least(what, [1 / ratio for ratio in cpu if ratio], bound)


def best(records, work, against, ratio, worst):
    """Our ratio to the best of several in each round: the worst of the ratios to each."""
    own = rates.of_work(records, work, "entrepot")
    found = []
    for run in own:
        others = [rates.of_work(records, work, name) for name in against]
        others = [other for runs in others for other in pick(runs, round=run["round"])]
        ratios = [value for other in others if (value := ratio(run, other)) is not None]
        found += [worst(ratios)] if ratios else []
    return found


def title(against):
    return "the best nginx" if len(against) > 1 else "nginx over files"


def named(work):
    row, connections, client = work
    return f"{row}, c={connections}, {client}"


COLD_FIRST_BYTE_ADDED_MS = 1.0
HERD_SECONDS_MAX = 2.6
HERD_FIRST_BYTE_MS_MAX = 6


def of_misses(records):
    by_round = lambda runs: {run["round"]: run for run in runs}
    for scenario in ["cold", "cold-shared"]:
        cold = pick(records, scenario=scenario)
        own, nginx = pick(cold, server="entrepot"), by_round(pick(cold, server="nginx-proxy"))
        pairs = [(run, nginx.get(run["round"])) for run in own]
        seconds = [run["seconds"] / other["seconds"] for run, other in pairs if other]
        what = f"{scenario}: time over that of nginx as a proxy, which does not verify"
        yield at_most(what, seconds, 1.0)
    cold = pick(records, scenario="cold")
    own, direct = pick(cold, server="entrepot"), by_round(pick(cold, server=misses.DIRECT))
    first = lambda run: run["first_byte_ms"]["p50"]
    added = [first(run) - first(direct[run["round"]]) for run in own]
    yield at_most("cold: ms added to the first byte", added, COLD_FIRST_BYTE_ADDED_MS)
    herd = pick(records, scenario="herd", server="entrepot")
    yield at_most("herd: seconds", [run["seconds"] for run in herd], HERD_SECONDS_MAX)
    yield at_most("herd: first byte p50, ms", list(map(first, herd)), HERD_FIRST_BYTE_MS_MAX)
    times = [run["upstream_times"] for run in herd]
    yield at_most("herd: upstream bytes over the size", times, 1.0, "{:.3f}")


IDLE_KIB_MAX = 4
IDLE_SHARE_MAX = 0.001


def of_idle(records):
    own = pick(records, scenario="idle", server="entrepot")
    yield at_most("idle: KiB a connection", [run["kib_per_connection"] for run in own], IDLE_KIB_MAX)
    share = [run["cpu_share"] for run in own]
    yield at_most("idle: share of a core", share, IDLE_SHARE_MAX, "{:.5f}")


PAGES_RATE_MIN = 0.9
SENDFILE_MS_MAX = 1.0


def of_pages(records):
    faster = pages.throughput(records)
    yield at_least("evicted: throughput over that of nginx with aio", faster, PAGES_RATE_MIN)
    inside = pages.in_sendfile(records, "entrepot").at(99.9)
    values = [] if inside is None else [inside]
    yield at_most("evicted: p99.9 ms inside one sendfile, by strace", values, SENDFILE_MS_MAX, "{:.3f}")


GROWTH_MAX = 1.10


def of_records(records):
    mine = pick(records, scenario="records")
    counts = sorted({record["records"] for record in mine})
    if len(counts) > 1:
        what = f"CPU of a hit with {counts[-1]:,} records over that with {counts[0]:,}"
        yield at_most(what, by_records.growth(mine, counts[-1]), GROWTH_MAX)


PARTS = [of_rates, of_misses, of_idle, of_pages, of_records]
