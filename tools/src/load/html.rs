//! A report as one page: tables, and plots drawn into it. Nothing is loaded from elsewhere.

use std::fmt::Write;

use hdrhistogram::Histogram;

use super::plot::{Line, Ticks, svg};
use super::report::{MARKS, Report, ms};
use super::series::Second;

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1b1f24;--paper:#fff;--faint:#d7dbe0;\
--a:#0b62c4;--b:#c2410c;--c:#6b7280}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e8eb;--paper:#14171b;--faint:#343a41;\
--a:#6cb2ff;--b:#ff9d5c;--c:#9aa3ad}}\
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--paper);\
max-width:800px;margin:2em auto;padding:0 1em}\
h1{font-size:1.3em;overflow-wrap:anywhere}h2{font-size:1.05em;margin-top:2em}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
td,th{padding:.15em .9em .15em 0;text-align:right;font-weight:normal}\
th{border-bottom:1px solid var(--faint)}td:first-child,th:first-child{text-align:left}\
.scroll{overflow-x:auto}svg{width:100%;height:auto}\
text{font-size:11px;fill:var(--c)}text.y{text-anchor:end}text.x{text-anchor:middle}\
line.grid{stroke:var(--faint)}polyline{fill:none;stroke-width:1.6}\
polyline.line0{stroke:var(--a)}polyline.line1{stroke:var(--b)}polyline.line2{stroke:var(--c)}\
.legend{margin:0}.legend span{margin-right:1em}\
span.line0{color:var(--a)}span.line1{color:var(--b)}span.line2{color:var(--c)}";

/// The curve ends at this many nines.
const NINES_MAX: f64 = 5.0;
/// Points between two nines.
const POINTS_PER_NINE: f64 = 20.0;

pub fn page(report: &Report) -> String {
    let title = escape(&report.title);
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body><h1>{title}</h1>"
    );
    let took = report.took.as_secs_f64();
    let _ = write!(
        out,
        "<p>{} requests in {took:.2} s: {:.0} per second, {:.3} GB/s, {} errors.</p>",
        report.requests(),
        report.requests_per_s(),
        report.gb_per_s(),
        report.errors()
    );
    section(&mut out, "Latency by percentile", &curve(report));
    section(&mut out, "Latency", &latency_table(report));
    section(&mut out, "Second by second", &series(&report.counts.series));
    section(&mut out, "Answers and errors", &answers(report));
    let settings = report.settings.iter();
    let rows = settings.map(|(name, value)| vec![(*name).to_owned(), escape(value)]);
    section(&mut out, "Settings", &table(&["", ""], rows));
    out.push_str("</body></html>\n");
    out
}

fn section(out: &mut String, title: &str, body: &str) {
    let _ = write!(out, "<h2>{title}</h2><div class=\"scroll\">{body}</div>");
}

/// Each nine takes the same room: half, 90 %, 99 %, ...
fn curve(report: &Report) -> String {
    let points = |times: &Histogram<u64>| -> Vec<(f64, f64)> {
        let count = (NINES_MAX * POINTS_PER_NINE) as usize;
        let nines = (0..=count).map(|nth| nth as f64 / POINTS_PER_NINE);
        let value = |nines: f64| ms(times.value_at_quantile(1.0 - 10_f64.powf(-nines)));
        nines.map(|nines| (nines, value(nines))).collect()
    };
    let line = |name, times| Line {
        name,
        points: points(times),
    };
    let lines = [
        line("whole answer", &report.all.latency),
        line("first byte", &report.all.first_byte),
    ];
    let names = ["0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
    let ticks = names.iter().enumerate();
    let ticks = ticks.map(|(nines, name)| (nines as f64, (*name).to_owned()));
    svg(&lines, &Ticks::Named(ticks.collect()), "ms")
}

fn latency_table(report: &Report) -> String {
    let row = |name: String, times: &Histogram<u64>| {
        let mut row = vec![name, times.len().to_string()];
        let marks = MARKS
            .iter()
            .map(|(_, quantile)| times.value_at_quantile(*quantile));
        row.extend(
            marks
                .chain([times.max()])
                .map(|value| format!("{:.3}", ms(value))),
        );
        row
    };
    let mut rows = vec![
        row("all requests".to_owned(), &report.all.latency),
        row("first byte".to_owned(), &report.all.first_byte),
    ];
    for (kind, times) in &report.counts.kinds {
        rows.push(row(kind.name().to_owned(), &times.latency));
    }
    let mut names = vec!["ms", "count"];
    names.extend(MARKS.iter().map(|(name, _)| *name));
    names.push("max");
    table(&names, rows.into_iter())
}

fn series(seconds: &[Second]) -> String {
    let line = |name: &'static str, of: &dyn Fn(&Second) -> f64| Line {
        name,
        points: seconds
            .iter()
            .enumerate()
            .map(|(at, second)| (at as f64, of(second)))
            .collect(),
    };
    let latency = |quantile: f64| move |second: &Second| second.quantile(quantile) as f64 / 1e3;
    [
        svg(
            &[line("", &|second| second.requests as f64)],
            &Ticks::Round,
            "requests/s",
        ),
        svg(
            &[line("", &|second| second.bytes as f64 / 1e6)],
            &Ticks::Round,
            "MB/s",
        ),
        svg(
            &[
                line("p50", &latency(0.5)),
                line("p99", &latency(0.99)),
                line("max", &latency(1.0)),
            ],
            &Ticks::Round,
            "ms",
        ),
        svg(
            &[line("", &|second| second.errors as f64)],
            &Ticks::Round,
            "errors/s",
        ),
    ]
    .concat()
}

fn answers(report: &Report) -> String {
    let counts = &report.counts;
    let statuses = counts.statuses.iter();
    let statuses =
        statuses.map(|(status, count)| vec![format!("status {status}"), count.to_string()]);
    let errors = counts.errors.iter();
    let errors =
        errors.map(|(class, count)| vec![format!("error: {}", class.name()), count.to_string()]);
    let besides = [
        ("redirects followed", counts.redirects),
        ("connections closed while idle", counts.reconnects),
        ("images failed", counts.images_failed),
    ];
    let besides = besides.into_iter().filter(|(_, count)| *count > 0);
    let besides = besides.map(|(name, count)| vec![name.to_owned(), count.to_string()]);
    let more = report.more.iter();
    let more = more.map(|(name, value)| vec![escape(name), escape(&value.to_string())]);
    table(&["", ""], statuses.chain(errors).chain(besides).chain(more))
}

fn table(names: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let cells = |tag: &str, cells: &[String]| -> String {
        let cells = cells.iter().map(|cell| format!("<{tag}>{cell}</{tag}>"));
        format!("<tr>{}</tr>", cells.collect::<String>())
    };
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut out = "<table>".to_owned();
    if names.iter().any(|name| !name.is_empty()) {
        out.push_str(&cells("th", &names));
    }
    for row in rows {
        out.push_str(&cells("td", &row));
    }
    out.push_str("</table>");
    out
}

fn escape(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}
