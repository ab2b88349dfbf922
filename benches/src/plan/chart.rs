//! Lines of a figure against the size of one tier, one for each size of the other.

use crate::html::{Text, spread, step};
use std::fmt::{self, Write};

const WIDTH: f64 = 510.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = WIDTH - 74.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = HEIGHT - 44.0;
const LINE_GAP: f64 = 14.0;
/// As many shades as the style has; further lines begin with the first again.
const SHADES: usize = 8;

/// A picture: sizes stand evenly spaced in the order given, whatever lies between them.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    /// Names the picture among those of the page.
    pub(super) id: String,
    pub(super) title: String,
    /// Sizes along the axis.
    pub(super) sizes: &'a [String],
    /// What they are sizes of.
    pub(super) axis: &'a str,
    pub(super) lines: Vec<ChartLine>,
    /// How figures at the axis are written.
    pub(super) label: fn(f64) -> String,
    /// One figure for all sizes: what it is called, and how much.
    pub(super) level: Option<(&'a str, f64)>,
}

#[derive(Debug)]
pub(super) struct ChartLine {
    pub(super) name: String,
    /// For each size; `None` where there is no figure.
    pub(super) values: Vec<Option<f64>>,
}

impl Chart<'_> {
    pub(super) fn write(&self, out: &mut String) -> fmt::Result {
        let Self { id, title, .. } = self;
        let (title, more) = (Text(title), self.description());
        write!(
            out,
            r#"<svg class="panel" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{id} {id}-more"><title id="{id}">{title}</title><desc id="{id}-more">{}</desc>"#,
            Text(&more)
        )?;
        let most = self.most();
        self.grid(out, most)?;
        self.levels(out, most)?;
        let mut ends = Vec::new();
        for (nth, line) in self.lines.iter().enumerate() {
            ends.extend(self.line(out, nth, line, most)?);
        }
        self.names(out, &ends)?;
        out.write_str("</svg>")
    }

    /// For whoever hears the page instead of seeing it.
    fn description(&self) -> String {
        let line = |line: &ChartLine| {
            let values = line.values.iter().zip(self.sizes);
            let told = values
                .filter_map(|(value, size)| Some(format!("{} at {size}", (self.label)((*value)?))));
            format!("{}: {}", line.name, told.collect::<Vec<_>>().join(", "))
        };
        self.lines.iter().map(line).collect::<Vec<_>>().join("; ")
    }

    /// The top of the axis.
    fn most(&self) -> f64 {
        let values = self.lines.iter().flat_map(|line| line.values.iter().flatten().copied());
        let most = values.chain(self.level.map(|(_, value)| value)).fold(0.0, f64::max);
        if most > 0.0 { most * 1.04 } else { 1.0 }
    }

    fn x(&self, at: usize) -> f64 {
        let last = self.sizes.len().saturating_sub(1).max(1) as f64;
        let share = if self.sizes.len() == 1 { 0.5 } else { at as f64 / last };
        LEFT + 12.0 + share * (RIGHT - LEFT - 12.0)
    }

    fn grid(&self, out: &mut String, most: f64) -> fmt::Result {
        let between = step(most);
        for nth in 0..=(most / between) as u32 {
            let value = f64::from(nth) * between;
            let y = height(value, most);
            let class = if nth == 0 { "axis" } else { "grid" };
            write!(
                out,
                r#"<line class="{class}" x1="{LEFT:.1}" x2="{RIGHT:.1}" y1="{y:.1}" y2="{y:.1}"/><text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                y + 4.0,
                Text(&(self.label)(value)),
            )?;
        }
        for (at, size) in self.sizes.iter().enumerate() {
            let x = self.x(at);
            write!(
                out,
                r#"<line class="axis" x1="{x:.1}" x2="{x:.1}" y1="{BOTTOM:.1}" y2="{:.1}"/><text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
                BOTTOM + 5.0,
                BOTTOM + 19.0,
                Text(size),
            )?;
        }
        write!(
            out,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">{}</text>"#,
            f64::midpoint(LEFT, RIGHT),
            BOTTOM + 38.0,
            Text(self.axis),
        )
    }

    fn levels(&self, out: &mut String, most: f64) -> fmt::Result {
        let Some((name, value)) = self.level else { return Ok(()) };
        let y = height(value, most);
        write!(
            out,
            r#"<line class="level" x1="{LEFT:.1}" x2="{RIGHT:.1}" y1="{y:.1}" y2="{y:.1}"/><text class="ink" x="{:.1}" y="{:.1}">{}</text>"#,
            LEFT + 4.0,
            y - 4.0,
            Text(name),
        )
    }

    /// Returns where it ends, and whose it is.
    fn line(
        &self,
        out: &mut String,
        nth: usize,
        line: &ChartLine,
        most: f64,
    ) -> Result<Option<(usize, f64)>, fmt::Error> {
        let point = |(at, value): (usize, &Option<f64>)| {
            value.map(|value| (self.x(at), height(value, most)))
        };
        let points: Vec<(f64, f64)> = line.values.iter().enumerate().filter_map(point).collect();
        let shade = nth % SHADES;
        write!(out, r#"<g class="s{shade}"><polyline class="series" points=""#)?;
        for (x, y) in &points {
            write!(out, "{x:.1},{y:.1} ")?;
        }
        out.write_str(r#""/>"#)?;
        for (x, y) in &points {
            write!(out, r#"<circle class="mark" cx="{x:.1}" cy="{y:.1}" r="2.6"/>"#)?;
        }
        out.write_str("</g>")?;
        Ok(points.last().map(|(_, y)| (nth, *y)))
    }

    /// Names the lines where they end.
    fn names(&self, out: &mut String, ends: &[(usize, f64)]) -> fmt::Result {
        let places: Vec<f64> = ends.iter().map(|(_, y)| *y).collect();
        let moved = spread(&places, LINE_GAP, TOP, BOTTOM - 2.0);
        for ((nth, y), at) in ends.iter().zip(moved) {
            write!(
                out,
                r#"<g class="s{}"><line class="leader" x1="{:.1}" y1="{y:.1}" x2="{:.1}" y2="{at:.1}"/><text class="label" x="{:.1}" y="{:.1}">{}</text></g>"#,
                nth % SHADES,
                RIGHT + 5.0,
                RIGHT + 12.0,
                RIGHT + 15.0,
                at + 4.0,
                Text(&self.lines[*nth].name),
            )?;
        }
        Ok(())
    }
}

fn height(value: f64, most: f64) -> f64 {
    BOTTOM - value / most * (BOTTOM - TOP)
}
