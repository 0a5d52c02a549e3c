"""From records to tables: medians, spread, ratios within a round."""

from statistics import median


def unique(values):
    return list(dict.fromkeys(values))


def spread(values, form):
    """The median, in brackets the lowest and the highest."""
    if not values:
        return "-"
    middle, low, high = (form.format(f(values)) for f in (median, min, max))
    return f"{middle} ({low}–{high})"


def middle(values, form):
    values = [value for value in values if value is not None]
    return form.format(median(values)) if values else "-"


def table(header, rows):
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def pick(records, /, **wanted):
    return [r for r in records if all(r.get(name) == value for name, value in wanted.items())]


def of_round(records):
    return {record["round"]: record for record in records}


def paired(first, second, ratio):
    """`ratio(one, other)` of each round, so that what disturbs the machine disturbs both."""
    others = of_round(second)
    pairs = [(one, others[one["round"]]) for one in first if one["round"] in others]
    ratios = [ratio(one, other) for one, other in pairs]
    return [value for value in ratios if value is not None]


def divided(one, other):
    return one / other if one is not None and other else None
