"""Times in buckets that are 2 % wide: what is kept of a run when its samples are many."""

import math
from collections import Counter

WIDTH = 1.02


class Histogram:
    def __init__(self, buckets=None):
        self.buckets = Counter({int(number): count for number, count in (buckets or {}).items()})

    def add(self, milliseconds):
        # A microsecond is the finest.
        self.buckets[math.ceil(math.log(max(milliseconds, 1e-3) / 1e-3, WIDTH))] += 1

    def merged(self, other):
        return Histogram(self.buckets + other.buckets)

    def count(self):
        return self.buckets.total()

    def at(self, percent):
        """Upper end of the bucket, in ms; `None` without samples."""
        left = math.ceil(self.count() * percent / 100)
        for number, count in sorted(self.buckets.items()):
            left -= count
            if left <= 0:
                return 1e-3 * WIDTH**number
        return None

    def json(self):
        return {str(number): count for number, count in sorted(self.buckets.items())}


def pooled(histograms):
    whole = Histogram()
    for histogram in histograms:
        whole = whole.merged(histogram)
    return whole
