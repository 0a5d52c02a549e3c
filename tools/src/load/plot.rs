//! Line plots as SVG, for a page that needs nothing else.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// Steps that a person likes on an axis.
const STEPS: [f64; 3] = [1.0, 2.0, 5.0];
const Y_TICKS: f64 = 4.0;
const X_TICKS: f64 = 8.0;
/// More points than this are drawn as their maxima.
const POINTS_MAX: usize = 1500;

/// One line: its name in the legend and its points.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// How the x axis is marked.
pub enum Ticks {
    /// Seconds, for example: round numbers.
    Round,
    /// These, where they stand.
    Named(Vec<(f64, String)>),
}

/// A plot, with y from 0.
pub fn svg(lines: &[Line], x_ticks: &Ticks, y_unit: &str) -> String {
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_max = all().map(|point| point.0).fold(0.0, f64::max);
    let y_max = all().map(|point| point.1).fold(0.0, f64::max);
    let x_max = if x_max > 0.0 { x_max } else { 1.0 };
    let y_step = step(y_max, Y_TICKS);
    let y_max = (y_max / y_step).ceil().max(1.0) * y_step;
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value / y_max * (HEIGHT - TOP - BOTTOM);

    let mut out = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    let mut tick = 0.0;
    while tick <= y_max * 1.0001 {
        let (at, text) = (y(tick), number(tick));
        let right = WIDTH - RIGHT;
        let _ = write!(
            out,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"y\" x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            LEFT - 6.0,
            at + 4.0
        );
        tick += y_step;
    }
    for (value, text) in marks(x_ticks, x_max) {
        let (at, bottom) = (x(value), HEIGHT - 8.0);
        let _ = write!(
            out,
            "<text class=\"x\" x=\"{at:.1}\" y=\"{bottom}\">{text}</text>"
        );
    }
    let _ = write!(out, "<text class=\"unit\" x=\"4\" y=\"14\">{y_unit}</text>");
    for (nth, line) in lines.iter().enumerate() {
        let points: Vec<String> = thinned(&line.points)
            .map(|(at, value)| format!("{:.1},{:.1}", x(at), y(value)))
            .collect();
        let points = points.join(" ");
        let _ = write!(out, "<polyline class=\"line{nth}\" points=\"{points}\"/>");
    }
    out.push_str("</svg>");
    if lines.len() > 1 {
        out.push_str("<p class=\"legend\">");
        for (nth, line) in lines.iter().enumerate() {
            let _ = write!(out, "<span class=\"line{nth}\">{}</span> ", line.name);
        }
        out.push_str("</p>");
    }
    out
}

fn marks(ticks: &Ticks, x_max: f64) -> Vec<(f64, String)> {
    match ticks {
        Ticks::Named(marks) => marks.clone(),
        Ticks::Round => {
            let step = step(x_max, X_TICKS);
            let count = (x_max / step) as usize;
            let marks = (0..=count).map(|nth| nth as f64 * step);
            marks.map(|at| (at, number(at))).collect()
        }
    }
}

/// The round distance of about so many ticks.
fn step(max: f64, ticks: f64) -> f64 {
    if max <= 0.0 {
        return 1.0;
    }
    let rough = max / ticks;
    let power = 10_f64.powf(rough.log10().floor());
    let steps = STEPS.map(|step| step * power);
    steps
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(power * 10.0)
}

fn number(value: f64) -> String {
    match value {
        _ if value >= 1e9 => format!("{}G", short(value / 1e9)),
        _ if value >= 1e6 => format!("{}M", short(value / 1e6)),
        _ if value >= 1e4 => format!("{}k", short(value / 1e3)),
        _ => short(value),
    }
}

/// Without zeros at the end.
fn short(value: f64) -> String {
    let text = format!("{value:.4}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    text.to_owned()
}

/// Of neighbours the highest, when there are too many to see.
fn thinned(points: &[(f64, f64)]) -> impl Iterator<Item = (f64, f64)> {
    let group = points.len().div_ceil(POINTS_MAX).max(1);
    let highest = |group: &[(f64, f64)]| {
        let first = group[0];
        let y = group.iter().map(|point| point.1).fold(first.1, f64::max);
        (first.0, y)
    };
    points.chunks(group).map(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round() {
        for (max, expected) in [
            (0.0, 1.0),
            (4.0, 1.0),
            (10.0, 5.0),
            (33.0, 10.0),
            (0.07, 0.02),
        ] {
            let found = step(max, Y_TICKS);
            assert!((found - expected).abs() < 1e-9, "{max}: {found}");
        }
        let numbers = [0.25, 100.0, 20_000.0, 1.5e6, 2e9].map(number);
        assert_eq!(numbers, ["0.25", "100", "20k", "1.5M", "2G"]);
    }

    #[test]
    fn many_points_keep_their_maximum() {
        let points: Vec<(f64, f64)> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        let mut peak = points.clone();
        peak[7_777].1 = 9.0;
        let found: Vec<_> = thinned(&peak).collect();
        assert!(found.len() <= POINTS_MAX);
        assert!(found.iter().any(|point| point.1 == 9.0));
    }

    #[test]
    fn a_plot_of_nothing_is_a_plot() {
        let line = |points: Vec<(f64, f64)>| Line { name: "a", points };
        for lines in [vec![], vec![line(vec![])], vec![line(vec![(0.0, 0.0)])]] {
            let svg = svg(&lines, &Ticks::Round, "ms");
            assert!(svg.contains("</svg>") && !svg.contains("NaN"), "{svg}");
        }
    }
}
