use super::money::RATED_YEARS;
use super::options::{Checked, PlanOptions};
use super::report::Traffic;
use crate::longctx::{figures, size};

/// What was assumed and by which formulas figures were made, one sentence each.
pub(super) fn assumptions(options: &PlanOptions, checked: &Checked) -> Vec<String> {
    let prices = &options.prices;
    let tokens = checked.page_tokens;
    vec![
        format!(
            "hits: the daemon's own decisions ({}, {}), one request after another in the trace's order; \
             a request's hits are its leading pages that are in a tier, as a share of all pages \
             asked for",
            options.policy.name(),
            options.admission
        ),
        format!(
            "pages of {tokens} tokens, {} bytes a token, {} a page, all ranks together",
            checked.token_bytes,
            size(checked.page_bytes())
        ),
        checked.recompute.source.clone(),
        format!(
            "TTFT = bytes found in DRAM / {} GB/s + bytes found on SSD / {} GB/s + recompute(all \
             tokens) - recompute(tokens found); the last token is always computed; nothing waits \
             for other requests",
            figures(options.dram_bytes_per_s / 1e9),
            figures(options.ssd_bytes_per_s / 1e9)
        ),
        format!(
            "the SSD is cut into {} segments, of which the oldest is emptied when there is no room; \
             and four more",
            options.ssd_segments
        ),
        "write rate: bytes that demotion and reclaim write, over the time from the trace's first to \
         its last request"
            .to_owned(),
        format!(
            "drive life: a drive as large as the SSD tier, rated for {} writes of all of it a day \
             for {RATED_YEARS} years",
            prices.drive_writes_per_day
        ),
        format!(
            "cost of a million input tokens: GPU seconds of the recompute on {} at {} an hour, and \
             for the trace's time DRAM at {} and SSD at {} a GiB, paid off over {} years, the SSD \
             over its life if that is shorter; all in one currency",
            if options.tp == 1 { "1 GPU".to_owned() } else { format!("{} GPUs", options.tp) },
            prices.gpu_hour,
            prices.dram_per_gib,
            prices.ssd_per_gib,
            prices.years
        ),
        "knee: the cheapest pair of sizes after which no pair of up to twice its price has a hit \
         ratio better by a point"
            .to_owned(),
    ]
}

/// What is to be known about the figures, one line each.
pub(super) fn notes(options: &PlanOptions, traffic: &Traffic, knee_is_last: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if traffic.requests < traffic.all_requests {
        notes.push(format!(
            "a sample: only the first {} of the trace's {} requests",
            traffic.requests, traffic.all_requests
        ));
    }
    if options.trace.is_none() {
        notes.push(
            "generated traffic says nothing about yours: give --trace FILE for figures that do"
                .to_owned(),
        );
    }
    if traffic.duration_s <= 0.0 {
        notes.push(
            "the trace takes no time: there are no write rates, drive lives and costs".to_owned(),
        );
    }
    if knee_is_last {
        notes.push(
            "nothing of twice the knee's price was looked at: larger sizes may gain more"
                .to_owned(),
        );
    }
    notes.push(
        "the tiers are empty at the start: filling them for the first time counts as misses and as \
         writes"
            .to_owned(),
    );
    notes
}
