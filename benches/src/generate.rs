use crate::trace::{RawRequest, Trace, TraceBuilder};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Tokens of a block of generated traffic.
const BLOCK_TOKENS: u32 = 512;
/// Kinds of agents. Each has a prompt of instructions and tool descriptions that all its
/// conversations share.
const AGENTS: u64 = 4;
/// Conversations under way at any time.
const CONVERSATIONS: u64 = 40;
/// Turns of a conversation, at least and at most.
const TURNS: std::ops::RangeInclusive<u32> = 4..=28;

/// What generated traffic is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GeneratorOptions {
    /// How many requests.
    pub requests: u64,
    /// Equal seeds give equal traffic, on every machine.
    pub seed: u64,
}

/// Agent-like traffic: conversations that grow turn by turn, each opening with one of a few
/// shared system prompts, most turns following a tool call within seconds and some a person's
/// pause of minutes, so that a conversation goes cold and comes back.
#[must_use]
pub fn generate(options: &GeneratorOptions) -> Trace {
    let mut generator = Generator::new(options.seed);
    let mut trace = TraceBuilder::default();
    for _ in 0..options.requests {
        let request = generator.next();
        trace.push(&request).expect("generated requests keep to the format");
    }
    trace.finish()
}

struct Generator {
    random: fastrand::Rng,
    next_id: u64,
    agents: Vec<SharedPrompt>,
    /// When each conversation speaks next, milliseconds; ties go to the older one.
    due: BinaryHeap<Reverse<(u64, usize)>>,
    conversations: Vec<Conversation>,
}

struct SharedPrompt {
    tokens: u32,
    full_blocks: Vec<u64>,
}

struct Conversation {
    tokens: u32,
    full_blocks: Vec<u64>,
    turns_left: u32,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut generator = Self {
            random: fastrand::Rng::with_seed(seed),
            next_id: 0,
            agents: Vec::new(),
            due: BinaryHeap::new(),
            conversations: Vec::new(),
        };
        for _ in 0..AGENTS {
            let tokens = generator.random.u32(3_000..9_000);
            let mut full_blocks = Vec::new();
            generator.grow(&mut full_blocks, tokens);
            generator.agents.push(SharedPrompt { tokens, full_blocks });
        }
        for index in 0..CONVERSATIONS as usize {
            let fresh = generator.open();
            generator.conversations.push(fresh);
            let start = generator.random.u64(0..60_000);
            generator.due.push(Reverse((start, index)));
        }
        generator
    }

    /// Names blocks until `tokens` are covered, as far as they fill blocks.
    fn grow(&mut self, full_blocks: &mut Vec<u64>, tokens: u32) {
        while ((full_blocks.len() + 1) as u32) * BLOCK_TOKENS <= tokens {
            full_blocks.push(self.next_id);
            self.next_id += 1;
        }
    }

    fn open(&mut self) -> Conversation {
        // The lower of two draws: some agents are much busier than others.
        let agent = self.random.u64(0..AGENTS).min(self.random.u64(0..AGENTS)) as usize;
        let shared = &self.agents[agent];
        let (full_blocks, mut tokens) = (shared.full_blocks.clone(), shared.tokens);
        tokens += self.random.u32(500..6_000);
        Conversation { tokens, full_blocks, turns_left: self.random.u32(TURNS) }
    }

    fn next(&mut self) -> RawRequest {
        let Reverse((now, index)) = self.due.pop().expect("every conversation is due some time");
        if self.conversations[index].turns_left == 0 {
            self.conversations[index] = self.open();
        }
        let conversation = &mut self.conversations[index];
        let (tokens, mut full_blocks) = (conversation.tokens, conversation.full_blocks.clone());
        self.grow(&mut full_blocks, tokens);
        let mut hash_ids = full_blocks.clone();
        if !tokens.is_multiple_of(BLOCK_TOKENS) {
            // The partial block at the end: another id than the full one it will become.
            hash_ids.push(self.next_id);
            self.next_id += 1;
        }
        let output_length = self.random.u32(40..900);
        let asked = if self.random.u32(0..5) == 0 {
            self.random.u32(2_000..8_000)
        } else {
            self.random.u32(100..2_000)
        };
        let conversation = &mut self.conversations[index];
        conversation.full_blocks = full_blocks;
        conversation.tokens = tokens + output_length + asked;
        conversation.turns_left -= 1;
        let gap = self.gap_ms();
        self.due.push(Reverse((now + gap, index)));
        RawRequest { timestamp: now as f64, input_length: tokens, output_length, hash_ids }
    }

    /// From one request of a conversation to its next: mostly a tool's run, at times a person's
    /// pause.
    fn gap_ms(&mut self) -> u64 {
        if self.random.u32(0..4) == 0 {
            self.random.u64(60_000..600_000)
        } else {
            self.random.u64(2_000..15_000)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExactLru;
    use crate::replay_defaults;

    #[test]
    fn equal_seeds_give_equal_traffic_and_others_do_not() {
        let digest = |seed| *generate(&GeneratorOptions { requests: 50, seed }).digest();
        assert_eq!(digest(1), digest(1));
        assert_ne!(digest(1), digest(2));
    }

    #[test]
    fn a_shorter_run_is_the_start_of_a_longer_one() {
        let short = generate(&GeneratorOptions { requests: 30, seed: 3 });
        let long = generate(&GeneratorOptions { requests: 60, seed: 3 });
        assert!(short.requests().zip(long.requests()).all(|(a, b)| a == b));
    }

    #[test]
    fn default_traffic_hits_both_tiers_and_fits_the_promised_resources() {
        for seed in [replay_defaults::SEED, 1, 2, 3] {
            let requests = replay_defaults::REQUESTS;
            let trace = generate(&GeneratorOptions { requests, seed });
            let stats = trace.stats();
            let page = u64::from(replay_defaults::PAGE_BYTES);
            let (dram, ssd) =
                (replay_defaults::DRAM_BYTES / page, replay_defaults::SSD_BYTES / page);
            let ratio = |pages: u64| {
                let mut lru = ExactLru::new(pages as usize);
                let hits: usize = trace.requests().map(|r| lru.request(r.pages)).sum();
                hits as f64 / stats.references as f64
            };
            let (one, both) = (ratio(dram), ratio(dram + ssd));
            println!(
                "seed {seed}: {stats:?} dram {one:.3} both {both:.3} all {:.3}",
                ratio(1 << 40)
            );
            assert!(one > 0.3 && both - one > 0.08 && both < 0.97, "{one} {both}");
            assert!(stats.distinct > dram + ssd, "the SSD tier should have to reclaim");
            assert!(stats.references * page < 12 << 30, "more bytes than 30 s can move");
        }
    }
}
