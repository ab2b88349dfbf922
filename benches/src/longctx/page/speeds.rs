//! Speed against the limit: a bar for each row, inside the outline of what was possible.

use super::Width;
use crate::html::{Text, step};
use crate::longctx::report::{LongctxReport, LongctxRow};
use crate::longctx::scale::ContextTokens;
use std::fmt::{self, Write};

const BAR: f64 = 15.0;

pub(super) fn chart(out: &mut String, report: &LongctxReport, width: Width) -> fmt::Result {
    let class = width.class();
    let (whole, left, right, row_height, above) = match width {
        Width::Wide => (1040.0, 112.0, 190.0, 28.0, 0.0),
        // Names and figures stand above their bars.
        Width::Narrow => (368.0, 4.0, 8.0, 46.0, 18.0),
    };
    let most = report.rows.iter().map(fastest).fold(0.0, f64::max);
    let scale = (whole - left - right) / (most / 1e9);
    let height = report.rows.len() as f64 * row_height + 44.0;
    write!(
        out,
        r#"<svg class="{class}" viewBox="0 0 {whole} {height}" role="img" aria-labelledby="speeds-{class} speeds-{class}-more"><title id="speeds-{class}">Bandwidth against the limit</title><desc id="speeds-{class}-more">{}</desc>"#,
        Text(
            &report
                .rows
                .iter()
                .map(|row| format!("{}: {}", name(row), told(row)))
                .collect::<Vec<_>>()
                .join("; ")
        )
    )?;
    let bottom = height - 36.0;
    let every = step(most / 1e9);
    for tick in 0..=(most / 1e9 / every) as u32 {
        let speed = f64::from(tick) * every;
        let (x, letters) = (left + speed * scale, bottom + 16.0);
        let anchor = if tick == 0 && above > 0.0 { "start" } else { "middle" };
        write!(
            out,
            r#"<line class="grid" x1="{x:.1}" x2="{x:.1}" y1="0" y2="{bottom:.1}"/><text x="{x:.1}" y="{letters:.1}" text-anchor="{anchor}">{}</text>"#,
            crate::longctx::table::figures(speed).trim_end_matches('0').trim_end_matches('.')
        )?;
    }
    let (middle, under) = (f64::midpoint(left, whole - right), height - 4.0);
    write!(out, r#"<text x="{middle:.1}" y="{under:.1}" text-anchor="middle">GB/s</text>"#)?;
    for (nth, row) in report.rows.iter().enumerate() {
        let top = nth as f64 * row_height;
        bar(out, row, left, top + above + 6.0, scale)?;
        let (name, told) = (name(row), told(row));
        let line = if above > 0.0 { top + above } else { top + 6.0 + BAR - 3.0 };
        if above > 0.0 {
            write!(
                out,
                r#"<text class="name ink" x="{left:.1}" y="{line:.1}">{name} <tspan class="plain">{told}</tspan></text>"#
            )?;
        } else {
            let (before, behind) = (left - 8.0, left + fastest(row) / 1e9 * scale + 10.0);
            write!(
                out,
                r#"<text class="name ink" x="{before:.1}" y="{line:.1}" text-anchor="end">{name}</text><text class="ink" x="{behind:.1}" y="{line:.1}">{told}</text>"#
            )?;
        }
    }
    out.write_str("</svg>")
}

fn bar(out: &mut String, row: &LongctxRow, left: f64, top: f64, scale: f64) -> fmt::Result {
    let (tier, width) = (row.tier, row.bytes_per_s / 1e9 * scale);
    write!(
        out,
        r#"<g class="{tier}"><rect class="bar" x="{left:.1}" y="{top:.1}" width="{width:.1}" height="{BAR}"/>"#
    )?;
    if let Some(limit) = row.limit_bytes_per_s {
        let end = left + limit / 1e9 * scale;
        let (from, above, below) = (left + width, top - 3.0, top + BAR + 3.0);
        if end > from {
            let width = end - from;
            write!(
                out,
                r#"<rect class="limit" x="{from:.1}" y="{top:.1}" width="{width:.1}" height="{BAR}"/>"#
            )?;
        }
        write!(
            out,
            r#"<line class="limit-end" x1="{end:.1}" x2="{end:.1}" y1="{above:.1}" y2="{below:.1}"/>"#
        )?;
    }
    out.write_str("</g>")
}

fn fastest(row: &LongctxRow) -> f64 {
    row.bytes_per_s.max(row.limit_bytes_per_s.unwrap_or(0.0)).max(1.0)
}

fn name(row: &LongctxRow) -> String {
    format!("{} {}", ContextTokens(row.context), row.tier.to_uppercase())
}

fn told(row: &LongctxRow) -> String {
    let speed = format!("{:.2}", row.bytes_per_s / 1e9);
    match (row.limit_bytes_per_s, row.ratio) {
        (Some(limit), Some(ratio)) => {
            format!("{speed} of {:.2} GB/s, {:.0} %", limit / 1e9, ratio * 100.0)
        }
        _ => format!("{speed} GB/s, no limit known"),
    }
}
