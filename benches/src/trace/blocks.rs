use super::TraceRequest;

/// How a trace cuts prompts into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blocks {
    /// The rest of a prompt is a block of its own, of this many tokens at most.
    WithRest(u32),
    /// Full blocks only, of this many tokens.
    FullOnly(u32),
}

impl Blocks {
    /// Tokens of a full block.
    pub(super) fn tokens(self) -> u32 {
        match self {
            Self::WithRest(tokens) | Self::FullOnly(tokens) => tokens,
        }
    }

    /// How many of a request's `pages` are full.
    pub(super) fn full_pages(self, input_tokens: u32, pages: usize) -> usize {
        match self {
            Self::FullOnly(_) => pages,
            Self::WithRest(tokens) => pages.min((input_tokens / tokens) as usize),
        }
    }
}

/// Finds the one block size that explains every request's number of blocks. The format does not
/// name it: `n` blocks of `b` tokens hold `b × (n − 1) < length <= b × n` tokens with a rest, and
/// `b × n <= length < b × (n + 1)` without.
pub(super) fn infer<'a>(
    requests: impl Iterator<Item = TraceRequest<'a>>,
) -> Result<Blocks, String> {
    let (mut rest_low, mut rest_high) = (1, u32::MAX);
    let (mut full_low, mut full_high) = (1, u32::MAX);
    for request in requests.filter(|request| !request.pages.is_empty()) {
        let (length, pages) = (request.input_tokens, request.pages.len() as u32);
        rest_low = rest_low.max(length.div_ceil(pages));
        if pages > 1 {
            rest_high = rest_high.min(length.saturating_sub(1) / (pages - 1));
        }
        full_low = full_low.max(length / (pages + 1) + 1);
        full_high = full_high.min(length / pages);
    }
    // Without any rest at all both readings hold, and give the same pages.
    if full_low <= full_high {
        let power = full_low.next_power_of_two();
        return Ok(Blocks::FullOnly(if power <= full_high { power } else { full_high }));
    }
    if rest_low > rest_high {
        return Err(
            "input_length and the number of hash_ids fit no block size: every request must \
                    have ceil(input_length / block) or floor(input_length / block) ids"
                .to_owned(),
        );
    }
    let power = rest_low.next_power_of_two();
    Ok(Blocks::WithRest(if power <= rest_high { power } else { rest_low }))
}
