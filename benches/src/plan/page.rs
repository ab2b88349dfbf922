//! The report as one page: no scripts, no fonts, nothing from anywhere else.

use super::chart::{Chart, ChartLine};
use super::report::{PlanReport, PlanRow};
use super::table::{dash, money, rate, years};
use crate::TierSize;
use crate::html::{STYLE, Text};
use crate::longctx::{figures, size, time};
use std::fmt::{self, Write};

const OWN_STYLE: &str = include_str!("page/style.css");

/// A figure of each size pair that is drawn.
struct Picture {
    id: &'static str,
    heading: &'static str,
    caption: &'static str,
    value: fn(&PlanRow) -> Option<f64>,
    label: fn(f64) -> String,
    /// The same figure whatever the sizes are.
    level: fn(&PlanReport) -> Option<(&'static str, f64)>,
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

const PICTURES: [Picture; 6] = [
    Picture {
        id: "hits",
        heading: "Hit ratio",
        caption: "Leading pages found in either tier, of all pages asked for. Dashed: what a cache \
                  without bounds would hit.",
        value: |row| Some(row.hits.ratio),
        label: percent,
        level: |report| Some(("without bounds", report.traffic.unbounded_hit_ratio)),
    },
    Picture {
        id: "dram-hits",
        heading: "Of these, found in DRAM",
        caption: "The rest is found on SSD and takes longer to load.",
        value: |row| Some(row.hits.dram_ratio),
        label: percent,
        level: |_| None,
    },
    Picture {
        id: "ttft-p50",
        heading: "Time to first token, median",
        caption: "Modelled: loading what is found and computing the rest, with nothing to wait for. \
                  Dashed: without a cache.",
        value: |row| Some(row.speed.ttft_p50_ms),
        label: time,
        level: |report| Some(("no cache", report.without.ttft_p50_ms)),
    },
    Picture {
        id: "ttft-p99",
        heading: "Time to first token, 99th percentile",
        caption: "Modelled in the same way.",
        value: |row| Some(row.speed.ttft_p99_ms),
        label: time,
        level: |report| Some(("no cache", report.without.ttft_p99_ms)),
    },
    Picture {
        id: "writes",
        heading: "Written to SSD, bytes a second",
        caption: "On average over the trace, with what reclaim writes again.",
        value: |row| row.writes.bytes_per_s.filter(|_| row.ssd_pages > 0),
        label: rate,
        level: |_| None,
    },
    Picture {
        id: "cost",
        heading: "Cost of a million input tokens",
        caption: "GPUs for what is computed, and DRAM and SSD paid off. Dashed: without a cache.",
        value: |row| row.speed.cost_per_million_tokens.map(|cost| cost.total),
        label: money,
        level: |report| Some(("no cache", report.without.cost_per_million_tokens?.total)),
    },
];

impl PlanReport {
    /// The report as a page of its own, well-formed as XML too.
    #[must_use]
    pub fn html(&self) -> String {
        let mut out = String::new();
        self.write_html(&mut out).expect("a string takes everything");
        out
    }

    fn write_html(&self, out: &mut String) -> fmt::Result {
        let source = Text(&self.traffic.source);
        write!(
            out,
            r#"<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/><title>Sizes for {source}</title><style>
{STYLE}{OWN_STYLE}</style></head><body><main>
<h1>How much DRAM and SSD for {source}?</h1><p class="muted">{}. {}.</p>"#,
            Text(&self.subject()),
            Text(&self.traffic.sentence()),
        )?;
        if self.traffic.requests < self.traffic.all_requests {
            write!(
                out,
                r#"<p class="alarm" role="alert">A sample: only the first {} of {} requests.</p>"#,
                self.traffic.requests, self.traffic.all_requests
            )?;
        }
        self.facts(out)?;
        for picture in &PICTURES {
            self.picture(out, picture)?;
        }
        self.figures(out)?;
        self.sentences(out)?;
        out.write_str("</main></body></html>\n")
    }

    fn facts(&self, out: &mut String) -> fmt::Result {
        out.write_str(r#"<ul class="facts">"#)?;
        write!(
            out,
            "<li><b>{}</b><span>knee: {}</span></li>",
            percent(self.rows[self.knee].hits.ratio),
            Text(&self.knee_sentence())
        )?;
        if let (Some(at), Some(sentence)) = (self.cheapest, self.cheapest_sentence()) {
            let cost = self.rows[at].speed.cost_per_million_tokens.unwrap_or_default().total;
            write!(
                out,
                "<li><b>{}</b><span>cheapest: {}</span></li>",
                money(cost),
                Text(&sentence)
            )?;
        }
        write!(
            out,
            "<li><b>{}</b><span>of the pages a cache without bounds would hit</span></li></ul>",
            percent(self.traffic.unbounded_hit_ratio)
        )
    }

    fn picture(&self, out: &mut String, picture: &Picture) -> fmt::Result {
        if self.rows.iter().all(|row| (picture.value)(row).is_none()) {
            return Ok(());
        }
        let (drams, ssds) = (self.dram_sizes(), self.ssd_sizes());
        let Picture { id, heading, caption, .. } = picture;
        write!(out, r#"<h2 id="{id}">{heading}</h2><figure><div class="pair">"#)?;
        // Along an axis of one size there is nothing to see, unless the other has one only, too.
        if drams.len() > 1 || ssds.len() == 1 {
            let at = |dram: TierSize, ssd: TierSize| self.row(dram, ssd);
            self.panel(out, picture, ("DRAM", &drams), ("SSD", &ssds), at)?;
        }
        if ssds.len() > 1 {
            let at = |ssd: TierSize, dram: TierSize| self.row(dram, ssd);
            self.panel(out, picture, ("SSD", &ssds), ("DRAM", &drams), at)?;
        }
        write!(out, "</div><figcaption>{caption}</figcaption></figure>")
    }

    fn panel<'a>(
        &'a self,
        out: &mut String,
        picture: &Picture,
        (axis, along): (&str, &[TierSize]),
        (other, lines): (&str, &[TierSize]),
        at: impl Fn(TierSize, TierSize) -> Option<&'a PlanRow>,
    ) -> fmt::Result {
        let sizes: Vec<String> = along.iter().map(ToString::to_string).collect();
        let line = |size: &TierSize| ChartLine {
            name: format!("{other} {size}"),
            values: along.iter().map(|here| at(*here, *size).and_then(picture.value)).collect(),
        };
        let has_values = |line: &ChartLine| line.values.iter().any(Option::is_some);
        let chart = Chart {
            id: format!("{}-{}", picture.id, axis.to_lowercase()),
            title: format!("{} against {axis}", picture.heading),
            sizes: &sizes,
            axis: &format!("{axis}, % of the trace's distinct pages or bytes"),
            lines: lines.iter().map(line).filter(has_values).collect(),
            label: picture.label,
            level: (picture.level)(self),
        };
        chart.write(out)
    }

    fn figures(&self, out: &mut String) -> fmt::Result {
        out.write_str(
            r#"<h2 id="rows">All figures</h2><div class="scroll" tabindex="0" role="region" aria-labelledby="rows"><table><thead><tr><th class="word" scope="col">DRAM</th><th class="word" scope="col">SSD</th><th scope="col">DRAM<small>bytes</small></th><th scope="col">SSD<small>bytes</small></th><th scope="col">Hits<small>%</small></th><th scope="col">in DRAM<small>%</small></th><th scope="col">on SSD<small>%</small></th><th scope="col">TTFT<small>median</small></th><th scope="col">TTFT<small>99th p.</small></th><th scope="col">Written<small>a second</small></th><th scope="col">Worst minute<small>a second</small></th><th scope="col">Drive writes<small>a day</small></th><th scope="col">Drive life</th><th scope="col">GPUs<small>busy</small></th><th scope="col">Cost<small>a million tokens</small></th></tr></thead><tbody>"#,
        )?;
        let percent = |share: f64| format!("{:.2}", 100.0 * share);
        for (at, row) in self.rows.iter().enumerate() {
            let chosen = at == self.knee || Some(at) == self.cheapest;
            let class = if chosen { r#" class="chosen""# } else { "" };
            let (writes, speed, hits) = (&row.writes, &row.speed, &row.hits);
            let cost = speed.cost_per_million_tokens.map(|cost| cost.total);
            write!(out, r#"<tr{class}><th scope="row">{}</th>"#, row.dram)?;
            write!(out, r#"<td class="word">{}</td>"#, row.ssd)?;
            for cell in [
                size(row.dram_bytes),
                size(row.ssd_bytes),
                percent(hits.ratio),
                percent(hits.dram_ratio),
                percent(hits.ssd_ratio),
                time(speed.ttft_p50_ms),
                time(speed.ttft_p99_ms),
                writes.bytes_per_s.map_or_else(dash, rate),
                rate(writes.worst_minute_bytes_per_s),
                figures(writes.wear.drive_writes_per_day),
                writes.wear.life_years.map_or_else(dash, years),
                speed.prefill_gpus.map_or_else(dash, figures),
                cost.map_or_else(dash, money),
            ] {
                write!(out, "<td>{}</td>", Text(&cell))?;
            }
            out.write_str("</tr>")?;
        }
        out.write_str("</tbody></table></div>")
    }

    fn sentences(&self, out: &mut String) -> fmt::Result {
        out.write_str(r#"<h2 id="assumed">Assumptions and formulas</h2><ul class="sentences">"#)?;
        for line in self.assumptions.iter().chain(&self.notes) {
            write!(out, "<li>{}</li>", Text(line))?;
        }
        write!(
            out,
            "</ul><p class=\"muted\">{} replays of {} requests in {:.1} s, undercroft {}.</p>",
            self.rows.len(),
            self.traffic.requests,
            self.wall_s,
            env!("CARGO_PKG_VERSION")
        )
    }
}
