//! Time against length: a line for each tier, and the recompute's curve.

use super::Width;
use crate::html::{LogAxis, Text, spread};
use crate::longctx::break_even::BreakEven;
use crate::longctx::report::{LongctxReport, LongctxRow};
use crate::longctx::scale::ContextTokens;
use crate::longctx::table::time;
use std::fmt::{self, Write};

const LINE_GAP: f64 = 16.0;
/// Room that the letters of a break-even take.
const EVEN_LETTERS: f64 = 145.0;
/// Room for letters beside a point.
const BESIDE: f64 = 8.0;

struct Plot {
    x: LogAxis,
    y: LogAxis,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    width: f64,
    height: f64,
}

/// What is said at the right end of a line: by whom, what, and where the line ends.
struct Label {
    class: &'static str,
    text: String,
    y: f64,
}

pub(super) fn chart(out: &mut String, report: &LongctxReport, width: Width) -> fmt::Result {
    let plot = Plot::of(report, width);
    let class = width.class();
    write!(
        out,
        r#"<svg class="{class}" viewBox="0 0 {} {}" role="img" aria-labelledby="times-{class} times-{class}-more">"#,
        plot.width, plot.height
    )?;
    write!(
        out,
        r#"<title id="times-{class}">Time against context length</title><desc id="times-{class}-more">{}</desc>"#,
        Text(&description(report))
    )?;
    plot.grid(out, report)?;
    let mut labels = plot.recompute(out, report)?;
    for tier in &report.break_even {
        let rows: Vec<&LongctxRow> =
            report.rows.iter().filter(|row| row.tier == tier.tier).collect();
        labels.extend(plot.tier(out, tier.tier, &rows)?);
    }
    plot.break_evens(out, report)?;
    plot.labels(out, labels)?;
    out.write_str("</svg>")
}

/// For whoever hears the page instead of seeing it.
fn description(report: &LongctxReport) -> String {
    let mut all: Vec<String> = Vec::new();
    for row in &report.rows {
        all.push(format!(
            "{} from {}: {}, computing it anew {}",
            ContextTokens(row.context),
            row.tier,
            time(row.last_layer_ms),
            time(row.recompute_ms),
        ));
    }
    all.join("; ")
}

impl Plot {
    fn of(report: &LongctxReport, width: Width) -> Self {
        let (width, height, left, beside) = match width {
            Width::Wide => (1040.0, 430.0, 62.0, 150.0),
            Width::Narrow => (368.0, 400.0, 54.0, 118.0),
        };
        let (top, bottom) = (14.0, height - 44.0);
        let right = width - beside;
        let x = LogAxis::over(report.rows.iter().map(|row| row.context as f64), left + 14.0, right);
        let times = report.rows.iter().flat_map(|row| {
            [row.first_layer_ms, row.last_layer_ms, row.recompute_ms].map(|ms| ms.max(1e-3))
        });
        let y = LogAxis::over(times, bottom, top).of_decades();
        Self { x, y, left, right, top, bottom, width, height }
    }

    fn point(&self, tokens: f64, ms: f64) -> (f64, f64) {
        (self.x.at(tokens), self.y.at(ms.max(1e-3)))
    }

    fn grid(&self, out: &mut String, report: &LongctxReport) -> fmt::Result {
        let Self { left, right, top, bottom, .. } = *self;
        for ms in self.y.decades() {
            let y = self.y.at(ms);
            let (label, letters) = (decade(ms), y + 4.0);
            let end = left - BESIDE;
            write!(
                out,
                r#"<line class="grid" x1="{left:.1}" x2="{right:.1}" y1="{y:.1}" y2="{y:.1}"/><text x="{end:.1}" y="{letters:.1}" text-anchor="end">{label}</text>"#
            )?;
        }
        write!(
            out,
            r#"<line class="axis" x1="{left:.1}" x2="{right:.1}" y1="{bottom:.1}" y2="{bottom:.1}"/>"#
        )?;
        let mut contexts: Vec<u64> = report.rows.iter().map(|row| row.context).collect();
        contexts.sort_unstable();
        contexts.dedup();
        let mut taken = f64::MIN;
        for context in contexts {
            let x = self.x.at(context as f64);
            let (tick, letters) = (bottom + 5.0, bottom + 19.0);
            write!(
                out,
                r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{bottom:.1}" y2="{tick:.1}"/>"#
            )?;
            // Two that stand too near share one label.
            if x - taken >= 34.0 {
                let label = ContextTokens(context);
                write!(
                    out,
                    r#"<text x="{x:.1}" y="{letters:.1}" text-anchor="middle">{label}</text>"#
                )?;
                taken = x;
            }
        }
        let (middle, under) = (f64::midpoint(left, right), bottom + 38.0);
        write!(
            out,
            r#"<text x="{middle:.1}" y="{under:.1}" text-anchor="middle">context, tokens</text>"#
        )?;
        debug_assert!(top < bottom, "the plot has a height");
        Ok(())
    }

    fn recompute(
        &self,
        out: &mut String,
        report: &LongctxReport,
    ) -> Result<Vec<Label>, fmt::Error> {
        let curve = self.x.walk(48).map(|tokens| (tokens, report.recompute.seconds(tokens) * 1e3));
        let inside: Vec<(f64, f64)> = curve
            .filter(|(_, ms)| self.y.has(*ms))
            .map(|(tokens, ms)| self.point(tokens, ms))
            .collect();
        let Some((_, y)) = inside.last().copied() else { return Ok(Vec::new()) };
        self.line(out, "anew series", &inside)?;
        Ok(vec![Label { class: "anew", text: "recompute".to_owned(), y }])
    }

    fn tier(
        &self,
        out: &mut String,
        tier: &'static str,
        rows: &[&LongctxRow],
    ) -> Result<Vec<Label>, fmt::Error> {
        let mut rows: Vec<&LongctxRow> = rows.to_vec();
        rows.sort_by_key(|row| row.context);
        let of = |ms: fn(&LongctxRow) -> f64| -> Vec<(f64, f64)> {
            rows.iter().map(|row| self.point(row.context as f64, ms(row))).collect()
        };
        let (first, last) = (of(|row| row.first_layer_ms), of(|row| row.last_layer_ms));
        let (Some(first_end), Some(last_end)) = (first.last(), last.last()) else {
            return Ok(Vec::new());
        };
        self.line(out, &format!("{tier} series first"), &first)?;
        self.line(out, &format!("{tier} series"), &last)?;
        for (row, (x, y)) in rows.iter().zip(&last) {
            let scaled = if row.scaled.is_scaled() { " scaled" } else { "" };
            mark(out, tier, scaled, *x, *y)?;
        }
        let name = tier.to_uppercase();
        let mut labels = vec![Label { class: tier, text: name.clone(), y: last_end.1 }];
        // Where the two end in one place, one name says both.
        if first_end.1 - last_end.1 >= 5.0 {
            labels.push(Label { class: tier, text: format!("{name} layer 0"), y: first_end.1 });
        }
        Ok(labels)
    }

    fn line(&self, out: &mut String, class: &str, points: &[(f64, f64)]) -> fmt::Result {
        write!(out, r#"<polyline class="{class}" points=""#)?;
        for (x, y) in points {
            write!(out, "{x:.1},{y:.1} ")?;
        }
        out.write_str(r#""/>"#)
    }

    fn break_evens(&self, out: &mut String, report: &LongctxReport) -> fmt::Result {
        for (nth, tier) in report.break_even.iter().enumerate() {
            let BreakEven::Tokens(tokens) = tier.tokens else { continue };
            let ms = report.recompute.seconds(tokens as f64) * 1e3;
            if !self.x.has(tokens as f64) || !self.y.has(ms) {
                continue;
            }
            let ((x, y), class) = (self.point(tokens as f64, ms), tier.tier);
            let letters = self.bottom - BESIDE - LINE_GAP * nth as f64;
            // To the left where there is room, as lines end at the right.
            let fits = x - self.left > EVEN_LETTERS;
            let (anchor, beside) = if fits { ("end", -5.0) } else { ("start", 5.0) };
            write!(
                out,
                r#"<g class="{class}"><line class="even" x1="{x:.1}" x2="{x:.1}" y1="{y:.1}" y2="{:.1}"/><circle class="mark scaled" cx="{x:.1}" cy="{y:.1}" r="6"/><text class="label" x="{:.1}" y="{letters:.1}" text-anchor="{anchor}">{} break-even {}</text></g>"#,
                self.bottom,
                x + beside,
                class.to_uppercase(),
                thousands(tokens),
            )?;
        }
        Ok(())
    }

    fn labels(&self, out: &mut String, labels: Vec<Label>) -> fmt::Result {
        let places: Vec<f64> = labels.iter().map(|label| label.y).collect();
        let moved = spread(&places, LINE_GAP, self.top + 4.0, self.bottom - 4.0);
        for (label, at) in labels.iter().zip(moved) {
            let Label { class, text, y } = label;
            let (from, to) = (self.right + 7.0, self.right + 14.0);
            let (letters, line) = (self.right + 17.0, at + 4.0);
            write!(
                out,
                r#"<g class="{class}"><line class="leader" x1="{from:.1}" y1="{y:.1}" x2="{to:.1}" y2="{at:.1}"/><text class="label" x="{letters:.1}" y="{line:.1}">{text}</text></g>"#
            )?;
        }
        Ok(())
    }
}

/// A circle for DRAM, a square for the SSD: told apart without colours.
fn mark(out: &mut String, tier: &str, scaled: &str, x: f64, y: f64) -> fmt::Result {
    if tier == "dram" {
        write!(
            out,
            r#"<g class="{tier}"><circle class="mark{scaled}" cx="{x:.1}" cy="{y:.1}" r="4.2"/></g>"#
        )
    } else {
        let (left, top) = (x - 4.0, y - 4.0);
        write!(
            out,
            r#"<g class="{tier}"><rect class="mark{scaled}" x="{left:.1}" y="{top:.1}" width="8" height="8"/></g>"#
        )
    }
}

/// A power of ten of milliseconds.
fn decade(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{:.0} µs", ms * 1e3),
        ms if ms < 1e3 => format!("{ms:.0} ms"),
        ms => format!("{:.0} s", ms / 1e3),
    }
}

/// Tokens to two figures, as lengths of contexts are spoken of.
pub(super) fn thousands(tokens: u64) -> String {
    match tokens {
        tokens if tokens >= 1 << 20 => format!("{:.1}m", tokens as f64 / f64::from(1 << 20)),
        tokens if tokens >= 10 << 10 => format!("{:.0}k", tokens as f64 / 1024.0),
        tokens if tokens >= 1 << 10 => format!("{:.1}k", tokens as f64 / 1024.0),
        tokens => format!("{tokens} tokens"),
    }
}
