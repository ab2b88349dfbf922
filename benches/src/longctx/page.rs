//! The report as one page: no scripts, no fonts, nothing from anywhere else.

mod speeds;
mod times;

use super::break_even::BreakEven;
use super::driver::size;
use super::report::{LongctxReport, LongctxRow};
use super::scale::ContextTokens;
use super::table::{figures, time};
use crate::html::{STYLE, Text};
use std::fmt::{self, Write};

/// For which screens a picture is drawn: letters of one size are not readable on all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Wide,
    Narrow,
}

impl Width {
    fn class(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        }
    }
}

impl LongctxReport {
    /// The report as a page of its own, well-formed as XML too.
    #[must_use]
    pub fn html(&self) -> String {
        let mut out = String::new();
        self.write_html(&mut out).expect("a string takes everything");
        out
    }

    fn write_html(&self, out: &mut String) -> fmt::Result {
        let model = Text(&self.model.name);
        write!(
            out,
            r#"<!DOCTYPE html>
<html lang="en" xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/><meta name="viewport" content="width=device-width, initial-scale=1"/><title>Long contexts of {model}</title><style>
{STYLE}</style></head><body><main>
"#
        )?;
        self.head(out)?;
        self.pictures(out)?;
        self.rows(out)?;
        self.sentences(out)?;
        out.write_str("</main></body></html>\n")
    }

    fn head(&self, out: &mut String) -> fmt::Result {
        let Self { model, page_tokens, page_bytes, device, .. } = self;
        let at_once = match self.concurrency {
            1 => "One context at a time".to_owned(),
            count => format!("{count} contexts at once"),
        };
        let rank = match self.tp {
            1 => String::new(),
            tp => format!(", one rank of {tp}"),
        };
        write!(
            out,
            r#"<h1>Long contexts of {}: load them, or compute them anew?</h1><p class="muted">{}{rank}. Pages of {page_tokens} tokens, {}. {at_once} into {}.</p>"#,
            Text(&model.name),
            Text(&model.to_string()),
            size((*page_bytes).into()),
            Text(device),
        )?;
        if !self.is_good() {
            write!(
                out,
                r#"<p class="alarm" role="alert">{} bytes came back wrong: no figure on this page means anything.</p>"#,
                self.wrong_bytes
            )?;
        }
        out.write_str(r#"<ul class="facts">"#)?;
        for tier in &self.break_even {
            let name = tier.tier.to_uppercase();
            let (fact, says) = match tier.tokens {
                BreakEven::Always => {
                    ("always".to_owned(), format!("loading from {name} pays, at any length"))
                }
                BreakEven::Tokens(tokens) => {
                    (times::thousands(tokens), format!("from here on loading from {name} pays"))
                }
                BreakEven::Never => ("never".to_owned(), format!("loading from {name} pays")),
            };
            write!(out, "<li><b>{fact}</b><span>{says}</span></li>")?;
        }
        for row in self.longest() {
            let times = figures(row.recompute_ms / row.last_layer_ms);
            let (context, tier) = (ContextTokens(row.context), row.tier.to_uppercase());
            let scaled = match row.scaled.is_scaled() {
                true => format!(" (scaled {})", row.scaled),
                false => String::new(),
            };
            write!(
                out,
                "<li><b>{times}×</b><span>as fast as computing {context} tokens anew, from \
                 {tier}{scaled}</span></li>"
            )?;
        }
        write!(
            out,
            "<li><b>{}</b><span>wrong bytes in {} restores</span></li></ul>",
            self.wrong_bytes,
            self.rows.iter().map(|row| row.repeats * self.concurrency).sum::<u32>()
        )
    }

    /// The rows of the longest context.
    fn longest(&self) -> impl Iterator<Item = &LongctxRow> {
        let most = self.rows.iter().map(|row| row.context).max();
        self.rows.iter().filter(move |row| Some(row.context) == most)
    }

    fn pictures(&self, out: &mut String) -> fmt::Result {
        out.write_str(r#"<h2 id="times">Time until a context is there</h2><figure>"#)?;
        times::chart(out, self, Width::Wide)?;
        times::chart(out, self, Width::Narrow)?;
        let scaled = match self.rows.iter().any(|row| row.scaled.is_scaled()) {
            true => {
                " Hollow marks are scaled: a part was measured, and all of it would take as long \
                     at the same speed."
            }
            false => "",
        };
        write!(
            out,
            "<figcaption>Both axes are logarithmic. Solid: until the last layer of all pages is in \
             place. Dotted: until the first layer is, and an engine can begin. Dashed: computing \
             the context anew on {} × {}.{scaled}</figcaption></figure>",
            self.tp, self.gpu
        )?;
        out.write_str(
            r#"<h2 id="speeds">Speed, and what this machine could do at best</h2><figure>"#,
        )?;
        speeds::chart(out, self, Width::Wide)?;
        speeds::chart(out, self, Width::Narrow)?;
        let limits = self.limits();
        write!(
            out,
            "<figcaption>Filled: the restore. Outline and upright line: the limit, measured in the \
             same run. The share is the middle one of the restores', each with a limit of its own. \
             {}.</figcaption></figure>",
            Text(&limits.join(". "))
        )
    }

    fn rows(&self, out: &mut String) -> fmt::Result {
        out.write_str(
            r#"<h2 id="rows">All figures</h2><div class="scroll" tabindex="0" role="region" aria-labelledby="rows"><table><thead><tr><th class="word" scope="col">Context<small>tokens</small></th><th class="word" scope="col">Tier</th><th class="word" scope="col">Measured</th><th scope="col">Bytes</th><th scope="col">First layer<small>median</small></th><th scope="col">Last layer<small>median</small></th><th scope="col">Recompute</th><th scope="col">Faster</th><th scope="col">Speed<small>GB/s</small></th><th scope="col">Limit<small>GB/s</small></th><th scope="col">Ratio</th><th scope="col">Saved<small>GPU-µs a token</small></th><th scope="col">Saved<small>J a token</small></th><th scope="col">Of<small>restores</small></th><th scope="col">Wrong<small>bytes</small></th></tr></thead><tbody>"#,
        )?;
        let dash = || "–".to_owned();
        for row in &self.rows {
            let measured = match row.scaled.is_scaled() {
                true => format!("scaled {}", row.scaled),
                false => "all of it".to_owned(),
            };
            write!(
                out,
                r#"<tr><th scope="row">{}</th><td class="word">{}</td><td class="word">{measured}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}×</td><td>{:.2}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.4}</td><td>{}</td><td>{}</td></tr>"#,
                ContextTokens(row.context),
                row.tier.to_uppercase(),
                size(row.bytes),
                time(row.first_layer_ms),
                time(row.last_layer_ms),
                time(row.recompute_ms),
                figures(row.recompute_ms / row.last_layer_ms),
                row.bytes_per_s / 1e9,
                row.limit_bytes_per_s.map_or_else(dash, |limit| format!("{:.2}", limit / 1e9)),
                row.ratio.map_or_else(dash, |ratio| format!("{ratio:.2}")),
                row.gpu_s_saved_per_token * 1e6,
                row.joules_saved_per_token,
                row.repeats,
                row.wrong_bytes,
            )?;
        }
        out.write_str("</tbody></table></div>")
    }

    fn sentences(&self, out: &mut String) -> fmt::Result {
        let machine = &self.machine;
        out.write_str(r#"<h2 id="assumed">Assumptions and formulas</h2><ul class="sentences">"#)?;
        for line in &self.assumptions {
            write!(out, "<li>{}</li>", Text(line))?;
        }
        out.write_str(r#"</ul><h2 id="machine">Measured on</h2><dl>"#)?;
        let facts = [
            ("Processor", format!("{}, {} cores", machine.cpu, machine.cores)),
            ("Last-level cache", size(machine.llc_bytes)),
            ("Memory", size(machine.memory_bytes)),
            ("Kernel", machine.kernel.clone()),
            ("SSD", machine.disk.clone()),
            ("Device", self.device.clone()),
            ("Run", format!("{:.0} s, undercroft {}", self.wall_s, env!("CARGO_PKG_VERSION"))),
        ];
        for (name, value) in facts {
            write!(out, "<dt>{name}</dt><dd>{}</dd>", Text(&value))?;
        }
        for note in &self.notes {
            write!(out, "<dt>Note</dt><dd>{}</dd>", Text(note))?;
        }
        out.write_str("</dl>")
    }
}
